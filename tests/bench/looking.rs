//! Lookers beside clients that lock: one that lists all keys, a Prometheus, and many readers of events.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::load::Result;

/// The shortest usual scrape interval of Prometheus.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);

/// A kind of looker.
#[derive(Clone, Copy, Debug)]
pub enum Looker {
    Nobody,
    /// Requests page after page of a thousand keys, without pauses.
    Lister,
    /// Requests the metrics once a second.
    Scraper,
    /// This many readers of all events.
    Readers(usize),
}

/// Runs `work` beside the looker.
pub fn beside(looker: Looker, port: u16, work: impl FnOnce() -> Result<f64>) -> Result<f64> {
    match looker {
        Looker::Nobody => work(),
        Looker::Lister => {
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                let lister = scope.spawn(|| -> Result<()> {
                    let mut pages = Pages::of(port)?;
                    while !is_over.load(SeqCst) {
                        pages.next()?;
                    }
                    Ok(())
                });
                let done = work();
                is_over.store(true, SeqCst);
                lister.join().expect("it does not panic")?;
                done
            })
        }
        Looker::Scraper => {
            let (over, until_over) = mpsc::channel::<()>();
            thread::scope(|scope| {
                let scraper = scope.spawn(move || -> Result<()> {
                    let mut connection = connect(port)?;
                    loop {
                        get(&mut connection, "/metrics")?;
                        let ended = until_over.recv_timeout(SCRAPE_INTERVAL);
                        if ended == Err(mpsc::RecvTimeoutError::Disconnected) {
                            return Ok(());
                        }
                    }
                });
                let done = work();
                drop(over);
                scraper.join().expect("it does not panic")?;
                done
            })
        }
        Looker::Readers(many) => {
            let streams = (0..many).map(|_| events(port));
            let streams = streams.collect::<Result<Vec<_>>>()?;
            thread::scope(|scope| {
                for stream in &streams {
                    scope.spawn(move || read_to_its_end(stream));
                }
                let done = work();
                for stream in &streams {
                    // Fails if the server has ended the connection.
                    let _ = stream.shutdown(Shutdown::Both);
                }
                done
            })
        }
    }
}

/// The times of pages of a thousand keys, requested one after another.
pub fn pages(port: u16, counting: Duration) -> Result<Vec<Duration>> {
    let (mut pages, end) = (Pages::of(port)?, Instant::now() + counting);
    let mut samples = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        pages.next()?;
        samples.push(begun.elapsed());
    }
    Ok(samples)
}

/// All keys, page by page, and again from the beginning.
struct Pages {
    connection: BufReader<TcpStream>,
    target: String,
}

impl Pages {
    const FIRST: &str = "/locks?limit=1000";

    fn of(port: u16) -> Result<Self> {
        Ok(Pages {
            connection: connect(port)?,
            target: Self::FIRST.into(),
        })
    }

    fn next(&mut self) -> Result<()> {
        const NEXT: &[u8] = b"\"next\":\"";
        let page = get(&mut self.connection, &self.target)?;
        // The cursor is at the end of the page.
        let end = &page[page.len().saturating_sub(100)..];
        let cursor = end.windows(NEXT.len()).position(|at| at == NEXT);
        let cursor =
            cursor.and_then(|at| end[at + NEXT.len()..].split(|&byte| byte == b'"').next());
        self.target = match cursor {
            Some(cursor) => format!("{}&after={}", Self::FIRST, str::from_utf8(cursor)?),
            None => Self::FIRST.into(),
        };
        Ok(())
    }
}

fn connect(port: u16) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::with_capacity(64 * 1024, stream))
}

/// A body of any length.
fn get(connection: &mut BufReader<TcpStream>, target: &str) -> Result<Vec<u8>> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    connection.get_mut().write_all(request.as_bytes())?;
    let mut length = None;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if connection.read_line(&mut line)? == 0 {
            return Err("the server closed the connection".into());
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = Some(value.trim().parse()?);
        }
    }
    let mut body = vec![0; length.ok_or("no length")?];
    connection.read_exact(&mut body)?;
    Ok(body)
}

/// Starts a stream of events.
fn events(port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut first = [0; 12];
    stream.read_exact(&mut first)?;
    match &first == b"HTTP/1.1 200" {
        true => Ok(stream),
        false => Err("the events were refused".into()),
    }
}

fn read_to_its_end(mut stream: &TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
}
