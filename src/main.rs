fn main() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let mut server = lock_server::Server::new(lock_server::Options {
        allow_shutdown: true,
        ..Default::default()
    });
    server.run().unwrap();
}
