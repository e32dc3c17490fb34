//! The tests that run in parallel, each with servers of its own, and the table of promises and their proofs.
//!
//! Several layers may test one rule; the table names the test that counts: `module::name` for a test of this binary,
//! and otherwise with the name of its binary or its path in `src/`. A test below checks that each exists. A promise
//! that begins with "also", "and" or "so" continues the one before it.
//!
//! | promise | proof |
//! |---|---|
//! | **Locks** | |
//! | a key never has more live leases than each of them allows; grants follow arrival; nobody waits while there is room; no grant to the dead, no stuck key, nothing left at the end | `mutual_exclusion::processes_that_die_sleep_and_hang_up_take_turns_on_every_key` |
//! | the trial's examiner reports each violation | `mutual_exclusion::the_examiner_reports_each_violation` |
//! | of many clients on one key, never two hold it | `contention::of_64_clients_on_one_key_never_two_hold_it_and_none_is_refused` |
//! | first come, first served | `contention::waiters_are_served_in_the_order_of_their_arrival` |
//! | also for thousands of waiters | `alone::http::eight_thousand_waiters_on_one_key_are_served_in_their_order` |
//! | when a lease ends, the next waiter has the key, and its own lease starts then | `wire::a_waiter_is_granted_the_key_when_the_lease_runs_out_and_its_own_lease_counts_from_then` |
//! | within 50 ms, with the original's example and times | `alone::synopsis::client_b_gets_the_key_when_the_lease_of_client_a_runs_out` |
//! | a lapsed lease has no holder | `wire::a_lapsed_lease_has_no_holder` |
//! | a holder that sends another LOCK is refused at once | `leases::a_no_to_lock_and_a_yes_to_check_name_the_holder` |
//! | a second LOCK of a waiting name is refused at once, and the earlier wait goes on | `wire::a_second_lock_of_a_waiting_name_is_refused_and_the_earlier_wait_goes_on` |
//! | a LOCK takes the place of a wait of its name whose client has gone, even of a fresh one | `wire::a_lock_takes_the_place_of_a_wait_of_its_name_whose_client_has_gone` |
//! | also on the classic wire, and between the wires | `classic::a_lock_takes_the_place_of_a_wait_of_its_name_whose_client_has_gone_on_either_wire` |
//! | a wait ends at its time-out, and its place is gone | `wire::a_timed_out_waiter_leaves_the_queue_and_may_come_again` |
//! | an attempt time-out of zero tries once | `wire::an_attempt_timeout_of_zero_tries_once` |
//! | a LOCK that waits blocks nobody else | `wire::a_waiting_lock_blocks_nobody_else` |
//! | a waiter whose process is killed loses its place within a second | `alone::http::a_waiter_whose_process_is_killed_gives_up_its_place_within_a_second` |
//! | a watched waiter that hangs up is never granted the key | `alone::http::a_watched_waiter_that_hangs_up_is_never_granted_the_key` |
//! | a client that hangs up after the grant keeps the lease | `alone::http::a_client_that_hangs_up_after_the_grant_keeps_the_lease` |
//! | a client that closes before its LOCK is read is granted a free key | `wire::a_client_that_has_closed_before_its_lock_is_read_is_granted_a_free_key` |
//! | a wait that begins while a crowd of waits is checked ends at its time-out | `alone::http::a_wait_that_begins_while_a_crowd_is_checked_ends_at_its_timeout` |
//! | **Several holders** | |
//! | the table and a naive model agree, in a million random steps | `table::tests::model::the_table_and_a_naive_model_agree_after_every_call` |
//! | the table follows the rules, millisecond by millisecond | `table::tests::world::a_table_called_each_millisecond_follows_the_rules` |
//! | readers share a key, a writer holds it alone | `slots::shared_locks_are_held_together_and_an_exclusive_one_alone` |
//! | among different slots, the smallest number counts | `slots::among_different_slots_the_smallest_number_counts` |
//! | no reader overtakes a waiting writer | `table::tests::slots::readers_that_arrive_after_a_waiting_writer_are_granted_after_it` |
//! | 64 waiting readers are granted the key within 50 ms, and then the writer after them | `slots::waiting_readers_are_granted_the_key_together_and_the_writer_after_them` |
//! | a waiting writer that hangs up lets readers in | `slots::a_reader_is_granted_the_key_when_the_waiting_writer_before_it_hangs_up` |
//! | so does one that times out | `slots::a_reader_is_granted_the_key_when_the_waiting_writer_before_it_times_out` |
//! | the end of a crowd of leases delays nobody else | `table::tests::slots::the_leases_of_a_crowd_end_in_steps_before_the_next_waiter_is_granted_the_key` |
//! | each holder counts for `max_keys` | `table::tests::slots::the_limit_of_holds_counts_each_holder_of_a_key` |
//! | slots outside their range are refused in a sentence | `slots::slots_outside_their_range_are_refused_in_a_sentence` |
//! | the client shares a key | `slots::the_client_shares_a_key_and_returns_the_number_of_holders` |
//! | and several keys at once | `slots::a_client_takes_several_keys_with_slots` |
//! | `lock` shares a key with flock's options | `command::lock_shares_a_key_with_flocks_options_and_prints_the_number_of_holders` |
//! | so does `exec` | `exec::readers_run_together_and_a_writer_alone` |
//! | the classic wire takes exclusive locks | `slots::the_classic_wire_takes_exclusive_locks` |
//! | **Breaking a hold** | |
//! | BREAK ends the hold with a fence, and the next waiter has the key | `break_lock::a_hold_is_broken_by_its_fence_and_the_next_waiter_has_the_key_at_once` |
//! | of several holds, only the one with the fence | `break_lock::of_several_holds_the_one_with_the_fence_is_broken` |
//! | a holder that was granted the key after the look keeps it | `break_lock::a_holder_that_was_granted_the_key_after_the_look_keeps_it` |
//! | BREAK needs POST and a fence, and no page from elsewhere can send it | `break_lock::a_break_needs_post_and_a_fence` |
//! | the classic wire has no BREAK | `break_lock::the_classic_wire_breaks_no_hold` |
//! | without tokens BREAK needs the option | `break_lock::without_tokens_a_break_needs_the_option` |
//! | with tokens BREAK needs the role admin | `break_lock::with_tokens_a_break_needs_the_role_admin_whatever_the_option_is` |
//! | the former holder can learn of it until ten minutes after its lease would have ended | `table::tests::broken::a_broken_hold_is_remembered_until_ten_minutes_after_its_lease_would_have_ended` |
//! | the client reports it | `break_lock::the_former_holder_learns_that_its_lease_was_broken` |
//! | a lost answer to UNLOCK does not count as a success | `break_lock::a_repeated_unlock_of_a_broken_hold_returns_that_it_unlocked_nothing` |
//! | nor a lost answer to BREAK as a no | `break_lock::a_break_whose_answer_was_lost_is_repeated_and_its_result_is_unknown` |
//! | a LOCK with the request ID of a broken hold is a new one | `break_lock::a_lock_with_the_request_id_of_a_broken_hold_is_a_new_lock` |
//! | a guard learns of it | `break_lock::a_guard_learns_at_its_next_renewal_that_it_was_broken` |
//! | `exec` ends its command | `break_lock::exec_ends_its_command_when_its_hold_is_broken_and_prints_that` |
//! | `unlock`, `renew` and `verify` print it | `break_lock::unlock_renew_and_verify_print_that_the_hold_was_broken` |
//! | the log names the broken holder and who broke the hold, and who was refused | `break_lock::the_log_names_the_broken_holder_and_who_broke_it_from_where` |
//! | the command shows the hold and breaks it | `break_lock::the_command_shows_the_hold_and_breaks_it` |
//! | of several holds, only the one that its options name | `break_lock::the_command_breaks_only_the_hold_that_its_options_name` |
//! | on a terminal it asks first | `break_lock::on_a_terminal_break_asks_first` |
//! | but not a user who may not break it | `break_lock::a_user_who_may_not_break_learns_that_before_the_question` |
//! | without a terminal it needs `--yes` | `break_lock::without_a_terminal_break_needs_the_option_yes` |
//! | that the user may not break it is the only reason that is said | `break_lock::that_a_user_may_not_break_is_the_only_reason_that_is_said` |
//! | a requester that takes the key during the question keeps it | `break_lock::a_requester_that_takes_the_key_during_the_question_keeps_it` |
//! | **Events** | |
//! | each event has its fields, events arrive in order, and a prefix selects keys | `events::each_event_has_its_fields_and_events_arrive_in_order` |
//! | a repeated LOCK is one event | `events::a_repeated_lock_is_one_event` |
//! | the headers are those of a stream, and HEAD returns only them | `events::an_event_streams_headers_forbid_caching_and_head_returns_only_them` |
//! | a request pipelined behind a stream is not carried out | `events::a_request_pipelined_behind_an_event_stream_is_not_carried_out` |
//! | skipped events are counted | `events::skipped_events_are_counted_and_the_others_are_in_order` |
//! | a reader that does not read is dropped, and delays nobody | `events::a_reader_that_never_reads_is_dropped_and_nobody_waits_for_it` |
//! | a reader that hangs up is noticed | `events::a_reader_that_hangs_up_is_noticed_without_an_event` |
//! | 200 readers are allowed | `events::the_201st_reader_is_refused_until_another_leaves` |
//! | when the server ends, the streams end after the last event | `events::when_the_server_ends_the_streams_end_after_the_last_event` |
//! | a server in threads ends its event thread | `events::a_server_in_threads_ends_its_event_thread` |
//! | events need the role read, and no foreign page gets them | `events::events_need_the_role_read_and_no_page_from_elsewhere_gets_them` |
//! | events pass through nginx as they happen | `events::events_come_through_nginx_as_they_happen` |
//! | a stream without events sends comments | `events::a_stream_without_events_sends_comments` |
//! | the client reads events, and is cancelled | `events::the_client_reads_events_until_it_is_cancelled_or_the_server_ends` |
//! | the client returns why it may not read events | `events::the_client_returns_why_it_may_not_read_events` |
//! | readers and their requests are counted | `events::readers_of_events_are_counted` |
//! | the command prints a line for each event | `events::events_prints_a_line_for_each_event_and_ends_quietly_on_a_signal` |
//! | with `--json` the server's JSON, unchanged | `events::events_prints_the_servers_json_unchanged` |
//! | it ends once nobody reads its output | `events::events_ends_once_nobody_reads_its_output` |
//! | on a terminal it shows the time of day | `events::on_a_terminal_events_shows_the_time_of_day` |
//! | it reconnects to a restarted server | `events::events_reconnects_to_a_restarted_server_and_prints_that` |
//! | without a server it ends with 69 | `events::events_ends_with_69_without_a_server_at_its_start` |
//! | **Locks that outlive the server: the file** | |
//! | holds survive a restart with their fences | `store::holds_survive_a_restart_with_the_same_fence` |
//! | and a kill, after which a repeated LOCK gets the same grant | `store::an_answered_grant_survives_a_kill_and_its_repeated_lock_gets_it_again` |
//! | a server that is killed repeatedly grants nothing twice and keeps each answered grant | `store_trial::a_server_killed_repeatedly_grants_nothing_twice_and_keeps_each_answered_grant` |
//! | a renewed lease survives a kill in full | `store::rules_6_and_7_a_renewed_lease_survives_a_kill_in_full` |
//! | `start` and `restart` of the command keep every lock | `store::start_and_restart_with_a_store_keep_every_lock` |
//! | guards and commands survive a kill | `store::a_guard_and_a_command_survive_a_kill_of_the_server` |
//! | so does a waiting client | `store::a_waiting_client_survives_a_restart_and_gets_its_turn` |
//! | each answer has the store's ID | `store::each_answer_has_the_stores_lasting_id` |
//! | a second server does not start on the same file | `store::a_second_server_does_not_start_on_the_same_file_and_prints_the_reason` |
//! | a server in a program closes its store when it stops | `store::a_server_in_this_process_closes_its_store_when_it_stops` |
//! | a bad store is refused in a sentence | `store::a_bad_store_is_refused_in_a_sentence_and_not_changed` |
//! | without syncs, locks survive a kill of the process | `store::without_syncs_locks_survive_a_kill_of_the_process` |
//! | no answer is sent before everything that was decided earlier is stored | `manager::tests::commit::rule_1_no_answer_leaves_before_what_was_decided_before_it_is_stored` |
//! | also on the wire, where answers that are not about holds are sent at once | `store_held::rule_1_during_a_commit_answers_about_holds_wait_and_all_others_arrive` |
//! | nobody gets an answer about what was not stored before a kill | `store_held::rule_1_nobody_gets_an_answer_about_what_was_not_stored_before_a_kill` |
//! | also for a repeated LOCK | `manager::tests::traces::rule_1_a_repeated_lock_is_answered_once_its_grant_is_stored` |
//! | for a VERIFY, RENEW or CHECK | `manager::tests::traces::rule_1_a_question_about_a_grant_is_answered_once_that_is_stored` |
//! | and for a repeated UNLOCK | `manager::tests::traces::rule_1_a_no_to_a_repeated_unlock_is_sent_once_the_end_is_stored` |
//! | nor is the next waiter answered before | `manager::tests::commit::rule_1_the_next_holder_is_answered_once_the_hand_over_is_stored` |
//! | a hold of an earlier run starts its full lease | `manager::tests::commit::rule_6_what_is_held_begins_its_full_lease_and_its_own_lock_gets_the_same_grant` |
//! | however much was left of it | `manager::tests::traces::rule_6_after_a_crash_a_lease_begins_in_full_whatever_was_left_of_it` |
//! | a renewal that asks for no longer lease is not stored, and one that does is | `manager::tests::commit::rule_7_a_renewal_that_asks_for_no_more_is_not_stored` |
//! | a longer renewal is answered once it is stored | `manager::tests::traces::rule_7_a_renewal_for_longer_is_answered_once_it_is_stored` |
//! | a shorter renewal does not shorten the stored lease | `manager::tests::traces::rule_7_a_renewal_for_less_does_not_shorten_what_is_stored` |
//! | nor the lease in memory, even if its answer is lost | `manager::tests::traces::rule_8_a_renewal_for_less_whose_answer_is_lost_takes_nothing_back` |
//! | an ended hold is not stored beside the next one | `manager::tests::traces::rule_9_a_hold_that_ended_by_itself_is_not_found_beside_the_next_one` |
//! | nor a swept one | `manager::tests::traces::rule_9_a_hold_that_was_swept_is_not_found_beside_the_next_one` |
//! | nor one of several | `manager::tests::traces::rule_9_a_hold_that_ended_is_not_found_beside_two_that_share_the_key` |
//! | nor when a batch is split between them | `manager::tests::traces::rule_9_if_a_batch_is_split_the_end_of_a_hold_comes_before_the_next_hold` |
//! | a batch has the last state of each grant | `manager::tests::commit::rule_10_a_batch_has_the_last_state_of_each_grant` |
//! | a grant that ended before it was stored leaves no older one behind | `manager::tests::traces::rule_10_a_grant_that_ended_before_it_was_stored_leaves_no_older_one_behind` |
//! | the wall clock may be set under a running server | `wall_clock::a_clock_that_is_set_under_a_server_changes_no_lease_and_fences_grow` |
//! | fences grow over restarts with a file, whatever the clock is | `wall_clock::fences_grow_over_restarts_with_a_store_in_a_file_whatever_the_clock_says` |
//! | fences keep growing, whatever the clock is | `manager::tests::commit::rule_11_fences_go_on_above_the_greatest_one_whatever_the_clock_says` |
//! | also when nothing is held any more | `manager::tests::traces::rule_11_fences_continue_after_a_crash_without_a_held_key` |
//! | of many changes the first are stored and answered first | `manager::tests::traces::rule_13_of_more_changes_than_a_batch_takes_the_first_are_stored_and_answered_first` |
//! | a LOCK that is repeated after a crash gets its own grant | `manager::tests::traces::rule_14_a_lock_that_is_repeated_after_a_crash_gets_its_own_grant` |
//! | a lease starts when its grant is stored | `manager::tests::commit::rule_15_a_lease_that_ended_before_its_grant_was_stored_begins_then` |
//! | while the store stalls, a whole queue gets full leases in turn | `manager::tests::traces::rule_15_if_the_store_stalls_longer_than_a_lease_each_waiter_gets_a_full_lease_in_turn` |
//! | the number of unstored changes is bounded | `manager::tests::commit::rule_18_beyond_10_000_changes_that_are_not_stored_nothing_is_granted` |
//! | without room grants are undone and ends are stored | `manager::tests::commit::without_room_grants_are_taken_back_and_ends_are_stored` |
//! | when the store is lost, nobody is answered | `manager::tests::commit::when_a_batch_is_lost_no_answer_is_sent` |
//! | at the server's end everything is stored | `manager::tests::commit::at_the_end_everything_is_stored` |
//! | after a power failure each committed batch is there, whole | `store::file::tests::rule_17_after_a_power_failure_each_committed_batch_is_there_whole` |
//! | the trial can fail | `store::file::tests::without_syncs_a_power_failure_loses_batches` |
//! | what a restarted server has read survives a power failure | `store::file::tests::rule_17_what_a_restarted_server_has_read_survives_a_power_failure` |
//! | a failed sync is an error | `store::file::tests::rule_17_a_failed_sync_of_a_checkpoint_is_an_error` |
//! | after a batch without room the next one is stored | `store::file::tests::after_a_batch_without_room_the_next_one_is_stored` |
//! | on a full disk holds end | `store::file::tests::on_a_full_disk_holds_end_but_none_begins` |
//! | a copy that is put back does not meet a later log | `store::file::tests::a_copy_that_is_put_back_after_an_orderly_end_does_not_meet_the_later_log` |
//! | also with a whole server, which runs on | `store_full::on_a_full_disk_no_lock_is_granted_all_else_works_and_nothing_is_lost` |
//! | one server uses the file; the next one waits a second for it | `store::file::tests::rule_17_a_server_waits_a_second_for_the_store_of_one_that_ends` |
//! | a file that is not a store is not changed | `store::file::tests::a_file_that_is_not_a_store_is_refused_and_not_changed` |
//! | nor one of a later version | `store::file::tests::a_file_of_a_later_version_is_refused_and_not_changed` |
//! | a truncated file is never an empty store | `store::file::tests::a_truncated_file_is_damaged_or_foreign_and_never_an_empty_store` |
//! | reading a store changes nothing | `store::file::tests::reading_a_store_changes_nothing` |
//! | a store of each earlier format can be read | `store_format::a_store_of_each_format_is_read_and_not_changed` |
//! | a server that starts on it has all its holds | `store_format::a_server_on_a_store_of_each_format_has_all_its_holds` |
//! | and leaves it readable for the earlier version | `store_format::a_server_leaves_a_store_of_each_format_in_that_format` |
//! | `store check` prints the number of holds in one line | `store_command::check_prints_the_number_of_holds_in_one_line` |
//! | the path may be written as `--store` has it | `store_command::the_path_may_be_written_as_the_option_store_has_it` |
//! | `store dump` prints the fields that the guide names | `store_command::dump_prints_the_fields_that_the_guide_names` |
//! | a file that is not a sound store is refused in a sentence | `store_command::a_file_that_is_not_a_sound_store_is_refused_with_exit_1` |
//! | **Clients of a cluster** | |
//! | the leader is found behind two absent servers | `cluster_client::the_leader_is_found_behind_two_absent_servers_and_tried_first_from_then_on` |
//! | a standby names the leader, which the client follows, in the list or not | `cluster_client::a_client_follows_a_standby_to_the_leader_in_the_list_or_not` |
//! | a LOCK is repeated with pauses until a server leads, with one request ID | `cluster_client::a_lock_is_repeated_with_pauses_until_a_server_leads` |
//! | without a leader the error says so, with the servers that were tried | `cluster_client::without_a_leader_the_error_says_so_with_the_servers_that_were_tried` |
//! | after an absent leader outside the list a client goes on with the list | `cluster_client::after_an_absent_leader_outside_the_list_a_client_goes_on_with_the_list` |
//! | a leader outside the list that does not name the store is not trusted | `cluster_client::a_leader_outside_the_list_that_does_not_name_the_store_is_not_trusted` |
//! | nor a server of the list without the store | `cluster_client::a_server_of_the_list_without_the_store_is_not_trusted` |
//! | nor one with another store | `cluster_client::a_server_of_the_list_with_another_store_is_not_trusted` |
//! | a single server needs no store | `cluster_client::a_single_server_needs_no_store` |
//! | a suspended server is passed over after a moment | `cluster_client::a_suspended_first_server_is_passed_over_after_a_moment` |
//! | `start` and `status` print that etcd is not reached | `cluster_command::start_and_status_print_that_etcd_is_not_reached_with_advice` |
//! | `status` prints the role, and the leader | `cluster_command::status_prints_the_role_of_a_server_and_the_leader` |
//! | `run` prints a curl command that follows to the leader | `cluster_command::run_introduces_a_server_of_a_cluster_with_a_curl_that_follows_to_the_leader` |
//! | a server with an etcd user gets a new token when its own expires | `etcd_users::a_server_with_an_etcd_user_gets_a_new_token_when_its_own_expires` |
//! | a wrong password for etcd is logged, and read again | `etcd_users::a_wrong_password_is_logged_and_shown_by_status_and_is_read_again` |
//! | a standby logs which of its options differ from the leader's | `cluster::a_standby_logs_which_of_its_options_differ_from_the_leaders` |
//! | a token is sent to each server | `cluster_client::a_token_is_sent_to_each_server_and_to_the_leader_that_they_name` |
//! | an UNLOCK without a fence is not repeated elsewhere after a broken answer | `cluster_client::an_unlock_without_a_fence_is_not_repeated_elsewhere_after_a_broken_answer` |
//! | a release with a lost answer is repeated at the next leader | `cluster_client::a_release_whose_answer_was_lost_with_the_leader_is_repeated_at_the_next_one` |
//! | a guard keeps its key while another server takes over | `cluster_client::a_guard_keeps_its_key_while_another_server_takes_over` |
//! | so does exec | `cluster_client::exec_keeps_its_key_while_another_server_takes_over_and_passes_the_list_to_its_command` |
//! | a wait goes on at the next leader | `cluster_client::a_wait_goes_on_at_the_next_leader_with_its_request_id` |
//! | events and looks follow to the leader | `cluster_client::events_and_looks_follow_to_the_leader` |
//! | the command takes several servers | `cluster_client::the_command_uses_the_servers_of_the_variable_or_of_the_option` |
//! | it prints that no server leads, and stops none of several | `cluster_client::the_command_prints_that_no_server_leads_and_stops_none_of_several` |
//! | a list with an invalid address is refused | `cluster_client::an_invalid_address_in_the_list_is_refused` |
//! | a server of another machine can't redirect a client to a loopback address | `client::cluster::no_other_machine_s_server_leads_to_an_address_of_this_one` |
//! | a leader outside the list gets the scheme and the prefix of the server that named it | `client::cluster::another_leader_is_asked_with_the_scheme_and_prefix_of_the_server_that_named_it` |
//! | **Locks that outlive the server: etcd** | |
//! | nobody gets an answer about an unstored decision | `cluster::rule_1_nobody_gets_an_answer_about_an_unstored_decision_and_the_next_leader_does_not_know_it` |
//! | a stored unanswered grant goes to the repeated LOCK at the next leader | `cluster::rule_1_a_stored_unanswered_grant_goes_to_the_repeated_lock_at_the_next_leader` |
//! | a commit that arrives after a failover changes nothing | `cluster::rule_2_a_commit_that_arrives_after_a_failover_changes_nothing` |
//! | a leader whose lease in etcd is gone grants nothing | `cluster::rule_3_a_leader_whose_lease_was_revoked_grants_nothing` |
//! | nor one whose key is gone | `cluster::rule_3_a_leader_whose_key_was_deleted_grants_nothing` |
//! | a leader suspended past a failover answers none of its waiting requests | `cluster::rule_3_a_leader_suspended_past_a_failover_answers_none_of_its_waiting_requests` |
//! | without a quorum of etcd nobody is answered | `cluster::rule_3_without_a_quorum_of_etcd_nobody_is_answered` |
//! | a restarted server does not adopt its old leader key | `cluster::rule_4_a_server_restarted_at_once_does_not_adopt_its_old_leader_key` |
//! | a win whose answer was lost counts | `cluster::rule_4_a_server_whose_win_was_not_answered_leads_with_the_key_that_it_made` |
//! | a server that wins during a commit knows what it stored | `cluster::rule_5_a_server_that_wins_during_a_commit_knows_what_it_stored` |
//! | a server that wins before a commit arrives never sees it | `cluster::rule_5_a_server_that_wins_before_a_commit_arrives_never_sees_it` |
//! | a load whose revision is compacted starts again | `cluster::rule_5_a_load_whose_revision_is_compacted_between_two_pages_starts_again` |
//! | a server that can't read a hold does not lead | `cluster::rule_5_a_server_that_cannot_read_a_hold_does_not_lead` |
//! | a renewed lease survives a failover in full | `cluster::rules_6_and_7_a_renewed_lease_survives_a_failover_in_full` |
//! | after a failover a waiter is granted the key only after the holder's full lease | `cluster::rule_6_after_a_failover_a_waiter_is_granted_the_key_only_after_the_holders_full_lease` |
//! | a hold that lapsed before a failover does not come back | `cluster::rule_9_a_hold_that_lapsed_before_a_failover_does_not_come_back_beside_the_next_grant` |
//! | a queue survives a store that stalls for ten leases | `cluster::rules_10_and_15_a_queue_survives_a_store_that_stalls_for_ten_leases` |
//! | a load continues at the page that failed | `store::etcd::tests::rows::a_load_continues_at_the_page_that_failed` |
//! | etcd counts each hold a few times, and not once for each page | `store::etcd::pages::a_crowd_of_keys_is_counted_a_few_times_and_not_once_for_each_page` |
//! | a load may take longer than the leadership lasts | `cluster_failovers::a_server_that_reads_for_longer_than_its_leadership_lasts_leads_in_the_end` |
//! | a crowd of holds survives a failover, and ends under one leader | `cluster_failovers::a_crowd_of_holds_outlives_a_failover_and_ends_under_one_leader` |
//! | the key of a dead holder is free one lease after the last failover | `cluster_failovers::the_key_of_a_dead_holder_is_free_one_lease_after_the_last_failover_and_no_sooner` |
//! | fences grow over failovers to servers whose clocks are behind | `wall_clock::fences_grow_over_failovers_to_servers_whose_clocks_are_behind` |
//! | a hold survives a failover to a server whose clock is a day off | `wall_clock::a_hold_outlives_a_failover_to_a_server_whose_clock_is_a_day_ahead_or_behind` |
//! | the wall clock may be set under a leader | `wall_clock::a_clock_that_is_set_under_a_leader_changes_no_lease_and_fences_grow` |
//! | all versions of etcd's gateway give the same errors | `store::etcd::tests::rows::errors_of_each_version_of_etcd_s_gateway_are_the_same` |
//! | fences grow over a failover | `cluster::rule_11_fences_grow_over_a_failover_even_if_nothing_is_held_any_more` |
//! | a commit that arrives twice counts once | `cluster::rule_12_a_commit_that_arrives_twice_counts_once` |
//! | a commit whose answer was lost is sent again | `cluster::rule_12_a_commit_whose_answer_was_lost_is_sent_again_whether_it_was_applied_or_not` |
//! | and so is a confirmation | `cluster::rule_12_a_confirmation_whose_answer_was_lost_is_sent_again` |
//! | a leader whose committing thread hangs loses its key | `cluster::rule_18_a_leader_whose_committing_thread_hangs_loses_its_key` |
//! | with a full etcd nothing is locked, and holds can be unlocked | `cluster::with_a_full_etcd_nothing_is_locked_and_holds_can_be_unlocked` |
//! | a leader grants locks again once there is room | `cluster::a_leader_grants_locks_again_once_etcd_has_room` |
//! | after an orderly end a standby serves after its next look, which comes within half a second | `cluster::after_an_orderly_end_a_standby_serves_within_half_a_second` |
//! | after a kill, within the TTL of the leader's lease and a second | `cluster::after_a_kill_a_standby_serves_within_the_leadership_s_time_and_a_second` |
//! | a standby redirects to the leader | `cluster::a_standby_redirects_to_the_leader_and_names_it` |
//! | `/readyz`, `/livez` and `/status` show whether a server leads | `cluster::readyz_livez_and_status_show_whether_a_server_leads` |
//! | a waiter is refused when its server stands by, and may wait at the next leader | `cluster::a_waiter_is_refused_when_its_server_stands_by_and_may_wait_at_the_next_leader` |
//! | with the feature `tls` a server uses etcd over TLS, with a certificate of its own | `tls::etcd::a_server_with_a_certificate_leads_and_stores_over_tls` |
//! | without a certificate that etcd accepts it stands by, and logs the reason | `tls::etcd::without_a_certificate_that_etcd_accepts_a_server_stands_by_and_logs_it` |
//! | also with an untrusted etcd | `tls::etcd::an_untrusted_etcd_is_not_used_and_the_log_has_the_reason` |
//! | until etcd's certificate is replaced | `tls::etcd::a_server_that_stands_by_leads_once_etcds_certificate_has_its_name` |
//! | with users in etcd, a certificate has to have no common name, and the log says so | `tls::etcd::where_etcd_has_users_a_server_leads_with_a_certificate_without_a_common_name_alone` |
//! | bad TLS files are refused at the start | `tls::etcd::bad_tls_files_are_refused_in_a_sentence` |
//! | killed, suspended and isolated servers and etcds grant nothing twice and lose nothing | `cluster_trial::killed_suspended_and_isolated_servers_and_etcds_grant_nothing_twice_and_lose_nothing` |
//! | the trial's judge reports each violation | `trial::the_judge_reports_each_violation` |
//! | a trial's history is read completely | `etcd::history::a_long_history_is_read_completely` |
//! | and its examiner reports each violation | `etcd::history::the_examiner_reports_each_violation` |
//! | **Leases and fences** | |
//! | a LOCK may give its lease time | `leases::a_lock_may_give_its_lease_time` |
//! | a LOCK may give its wait time | `leases::a_lock_may_give_its_wait_time` |
//! | times have limits | `leases::the_caps_are_an_hour_and_never_less_than_the_servers_own_times` |
//! | RENEW returns the new end, with the same fence | `leases::a_renewal_returns_the_new_expiry_with_the_same_fence` |
//! | RENEW without a time lasts as long as before | `leases::a_renewal_without_a_time_lasts_as_long_as_the_lease_did` |
//! | RENEW never shortens a lease | `leases::a_renewal_never_ends_before_an_earlier_answers_expiry` |
//! | also if its answer is lost | `client::the_remaining_time_is_right_after_a_shorter_renewal_with_a_lost_answer` |
//! | only the holder renews | `leases::a_renewal_by_a_non_holder_is_answered_0` |
//! | fences grow over all keys, and are exact in a JSON number | `leases::fences_grow_over_all_keys_and_are_exact_in_a_json_number` |
//! | fences grow over a restart | `leases::fences_grow_over_a_restart` |
//! | a stale fence releases, renews and verifies nothing | `leases::a_stale_fence_releases_renews_and_verifies_nothing` |
//! | requests for a key return the holder's note | `leases::a_locks_note_is_shown_to_requests_for_the_key` |
//! | `--note` of the command is shown, escaped | `command::a_note_is_shown_to_those_who_ask_for_the_key` |
//! | a repeat with the same ID is granted once | `leases::a_repeat_after_the_grant_gets_the_same_grant` |
//! | a repeat takes over the place of the waiting request | `leases::a_repeat_takes_over_the_place_of_the_waiting_request` |
//! | a place is reserved for 2 s | `leases::a_waiter_that_comes_back_within_two_seconds_is_before_later_arrivals` |
//! | and no longer | `leases::a_waiter_that_comes_back_after_two_seconds_queues_at_the_end` |
//! | a store that gets the fence before the read loses no update | `working_safely::a_pool_of_processes_with_a_stopped_one_loses_no_update` |
//! | a store that gets the fence only with the write loses one | `working_safely::a_fence_sent_only_with_the_write_is_too_late` |
//! | **The wire** | |
//! | each verb answers with the specified bytes | `wire::each_verb_is_answered_with_the_bytes_of_the_contract` |
//! | POST works like GET | `wire::post_works_like_get` |
//! | PING returns the server's times | `wire::ping_returns_1_and_the_servers_times` |
//! | HTTP/1.0 | `wire::an_http_1_0_connection_is_closed_after_the_answer_unless_it_asks_to_keep_it` |
//! | names are UTF-8, with any character escaped | `wire::names_are_utf_8_with_any_character_escaped` |
//! | names are up to 1,024 bytes | `wire::names_are_up_to_1024_bytes_long` |
//! | a bad request gets a status and a sentence | `wire::a_bad_request_gets_a_status_and_a_sentence_and_changes_nothing` |
//! | a bad parameter gets 400 and changes nothing | `leases::a_bad_parameter_gets_400_and_changes_nothing` |
//! | HEAD is GET without a body, if it changes nothing | `wire::head_is_answered_like_get_without_a_body_if_it_changes_nothing` |
//! | other methods get 405, with `Allow` per path | `wire::other_methods_get_405_with_the_paths_methods` |
//! | `/livez` and `/readyz` | `wire::livez_and_readyz_return_1_and_readyz_503_once_the_server_ends` |
//! | HAProxy's checks find the server up | `proxies::haproxys_checks_with_head_and_with_readyz_find_the_server_up` |
//! | parameters in a body are refused | `wire::parameters_in_a_body_are_refused_and_change_nothing` |
//! | an empty body counts as none, however it is announced | `wire::an_empty_body_counts_as_none_however_it_is_announced` |
//! | no body is taken for a request | `wire::an_unexpected_body_harms_nothing` |
//! | a request line that is not ASCII ends its connection | `wire::a_request_line_that_is_not_ascii_ends_its_connection_without_an_answer` |
//! | a request line that is not HTTP/1 does nothing | `wire::a_request_line_that_is_not_http_1_gets_400_or_no_answer_and_does_nothing` |
//! | an incomplete request creates no lock | `wire::a_request_cut_off_in_the_middle_creates_no_lock` |
//! | pipelined requests are answered in their order | `wire::pipelined_requests_are_answered_in_their_order` |
//! | `Lock-Server` | `wire::each_answer_names_the_servers_run` |
//! | `Lock-Server-Pid` | `wire::ping_from_loopback_returns_the_servers_process_id` |
//! | `Lock-Echo` | `harness::an_answer_repeats_the_request_id` |
//! | the holder, its end, and the number of waiters | `leases::a_no_to_lock_and_a_yes_to_check_name_the_holder` |
//! | requests of a web page, and for a foreign host, are refused | `wire::a_request_of_a_web_page_is_refused` |
//! | requests of the server's own page are allowed | `wire::requests_of_the_servers_own_page_are_allowed_and_those_of_other_pages_are_not` |
//! | an allowed host name is accepted | `wire::a_server_on_loopback_answers_only_under_its_allowed_host_names` |
//! | also through nginx on the same machine | `proxies::nginx_passes_on_a_public_name_that_is_allowed` |
//! | **Metrics and status** | |
//! | each metric has its name, type, help and labels | `metrics::the_metrics_of_a_new_server_have_these_names_types_help_and_labels` |
//! | further ones with a store | `metrics::a_server_with_a_store_also_has_these_metrics` |
//! | in the format of Prometheus | `metrics::promtool_has_no_complaint_about_the_metrics` |
//! | and is documented | `metrics::each_metric_is_documented_with_its_type_and_its_labels` |
//! | each counter counts what its row says | `metrics::each_counter_counts_exactly_what_its_row_says` |
//! | also on the classic wire | `metrics::each_answer_of_the_classic_wire_is_counted` |
//! | and passed-over waiters | `manager::tests::a_waiter_that_is_passed_over_is_counted_once` |
//! | the histograms add up | `metrics::a_histogram_counts_each_time_in_its_bucket_and_adds_all_up` |
//! | commits are counted before their answers | `metrics::the_metrics_of_a_store_count_commits_before_their_answers` |
//! | a store that is behind or full is reported | `manager::tests::commit::a_store_that_is_behind_or_full_is_shown_as_such` |
//! | the gauges show the present state | `metrics::the_gauges_show_what_there_is_now` |
//! | a server in a program's process has no process metrics | `metrics::a_server_in_a_programs_process_has_no_process_metrics` |
//! | `/status`, with a sample for every five seconds | `metrics::the_status_has_these_fields_and_a_sample_for_every_five_seconds` |
//! | with a store, also the store's state | `metrics::the_status_of_a_server_with_a_store_has_these_fields_and_each_is_documented` |
//! | with commit times in microseconds | `protocol::json::times::the_time_of_a_commit_has_six_decimals` |
//! | over the last ten minutes | `server::status::history::ten_minutes_are_kept_and_each_sample_counts_its_own_events` |
//! | with the times of commits | `server::status::history::commits_are_those_of_the_last_ten_minutes` |
//! | the log has the lapsed leases | `metrics::the_log_of_a_lapsed_lease_has_the_escaped_key_and_holder` |
//! | at most once a minute | `server::status::history::leases_that_ran_out_are_logged_once_a_minute_at_most_with_the_last_one_escaped` |
//! | a real Prometheus reads the metrics | `metrics::prometheus_reads_the_metrics_with_and_without_a_token` |
//! | the guide's alert rules are valid | `metrics::promtool_takes_the_alert_rules_of_the_guide_and_their_metrics_exist` |
//! | **Access** | |
//! | each role of a token is allowed its own verbs | `access::each_role_is_allowed_its_own_verbs_and_no_others` |
//! | SHUTDOWN needs the role admin | `access::shutdown_requires_the_role_admin_whatever_allow_shutdown_is` |
//! | the server's own page may send a token, and a foreign one is refused even with one | `access::a_page_of_the_server_may_send_a_token_and_a_page_from_elsewhere_is_refused_even_with_one` |
//! | `server.client()` and `server.env()` have a token | `access::a_servers_own_clients_have_a_token_from_its_file` |
//! | `Client::from_env` has one | `access::a_token_of_the_environment_is_read_by_from_env` |
//! | so does the command | `access::the_command_takes_its_token_from_the_environment_and_says_which_variable_is_missing` |
//! | only the owner may read a token file | `access::a_token_file_that_others_may_read_or_own_is_refused` |
//! | the error of a bad line has its number | `access::the_error_of_a_bad_line_has_its_number_and_not_its_token` |
//! | SIGHUP reads it again, and a bad one is ignored | `access::on_sighup_the_server_reads_the_token_file_again_and_ignores_a_bad_one` |
//! | also for a daemon, and with a relative path | `access::a_daemon_reads_and_rereads_a_token_file_with_a_relative_path` |
//! | a classic port with tokens needs an option of its own | `access::a_classic_port_with_tokens_needs_an_option_of_its_own` |
//! | no token in any log | `access::no_log_level_logs_a_token` |
//! | after many wrong tokens answers are slow | `access::after_many_wrong_tokens_answers_are_slow_until_a_right_one` |
//! | but not those to others | `access::delayed_answers_take_no_thread_each_and_delay_nobody_else` |
//! | the number of remembered addresses is bounded | `server::access::attempts::the_table_is_bounded_and_the_quietest_address_is_forgotten` |
//! | a server that is open to other machines without tokens warns | `access::a_server_beyond_loopback_warns_unless_all_need_a_token` |
//! | **The status page** | |
//! | shows what happens within two seconds | `page::the_page_shows_a_grant_a_wait_and_a_release_within_two_seconds` |
//! | and how much of a lease is left, as a bar | `page::the_bar_of_a_lease_shows_its_full_length_also_on_a_page_opened_later` |
//! | filters, sorts, and shows one key with its queue | `page::keys_are_filtered_sorted_and_looked_at_one_by_one` |
//! | shows 100,000 keys page by page | `page::a_hundred_thousand_keys_are_shown_page_by_page` |
//! | breaks the hold that was shown, after a confirmation | `page::a_hold_is_broken_after_a_confirmation_that_names_it` |
//! | or none | `page::a_hold_that_ended_while_it_was_confirmed_is_not_broken_and_nor_is_the_next_one` |
//! | has a line for a store | `server::status::page::a_store_has_one_line_and_a_server_without_one_has_none` |
//! | shows that the server does not answer, and that its numbers are old | `page::the_page_shows_that_the_server_does_not_answer_and_that_its_numbers_are_old` |
//! | and that the server has ended | `page::the_page_shows_that_the_server_ends` |
//! | sends the token that the browser was given | `page::the_page_sends_the_token_that_its_browser_was_given` |
//! | is a table without JavaScript | `page::without_javascript_the_page_is_a_table_of_the_keys` |
//! | shows names as text, and fits a narrow screen | `page::names_of_any_kind_are_shown_as_text_and_fit_the_screen` |
//! | is accessible in both schemes and by keyboard | `page::the_page_is_accessible_in_both_schemes_and_by_keyboard` |
//! | a page from elsewhere can neither read nor break nor frame | `page::a_page_from_elsewhere_can_neither_read_nor_break_nor_frame` |
//! | its policy allows only its own script | `server::status::page::the_security_policy_has_the_hashes_of_the_script_and_the_styles` |
//! | it is smaller than 60 kB and refers to no other address | `server::status::page::the_page_is_smaller_than_60_kb_and_names_no_other_address` |
//! | **The classic wire** | |
//! | each verb answers with the original's bytes | `classic::each_verb_is_answered_with_the_bytes_of_the_original_however_the_request_is_written` |
//! | both wires share the locks | `classic::each_wire_has_its_own_bytes_and_sees_the_others_locks` |
//! | and have one queue | `classic::waiters_of_both_wires_wait_in_one_queue` |
//! | names are not decoded | `classic::names_on_the_classic_wire_are_not_decoded` |
//! | a bad name is answered 0 | `classic::a_name_that_is_missing_empty_too_long_or_not_utf_8_is_answered_0` |
//! | an unknown verb closes the connection | `classic::after_an_unknown_verb_the_server_closes_the_connection_without_an_answer` |
//! | requests of web pages are refused | `classic::a_request_of_a_web_page_locks_nothing_and_its_connection_is_closed` |
//! | an incomplete request is cut off after 10 s | `classic::an_incomplete_request_is_cut_off_after_10_s_and_a_waiter_is_not` |
//! | or 64 kB | `classic::after_a_request_of_more_than_64_kb_the_connection_is_closed` |
//! | a waiter that is killed is never granted the key | `classic::a_waiter_killed_with_sigkill_is_never_granted_the_key` |
//! | the server ends within a second, and waiters get 0 | `classic::the_server_ends_within_a_second_and_answers_its_waiters_0` |
//! | an HTTP request to the classic port gets an explanation | `classic::an_http_request_to_the_classic_port_is_answered_with_an_explanation` |
//! | **Limits** | |
//! | 64 connections at once are answered within 250 ms | `alone::http::of_64_connections_at_once_each_is_answered_within_250_ms_whatever_else_is_connected` |
//! | a waiter costs 32 kB, and 8,000 end with the server within a second | `alone::http::eight_thousand_waiters_cost_32_kb_each_and_end_with_the_server_within_a_second` |
//! | an idle server takes less than half a percent of a core | `alone::http::an_idle_server_takes_less_than_half_a_percent_of_a_core` |
//! | without free descriptors the locks stay, and connections are served within a second of some being free | `alone::http::without_descriptors_the_locks_stay_and_new_connections_are_answered_within_a_second_of_some_being_free` |
//! | also on the classic port | `classic::without_free_descriptors_the_locks_stay_and_new_connections_are_served_later` |
//! | its threads are bounded | `classic::threads_are_bounded_and_the_client_that_was_silent_longest_makes_room` |
//! | beyond `max_waiters` and `max_keys`: 503 | `alone::http::beyond_the_limits_a_lock_is_refused_at_once_and_all_else_works` |
//! | a body that is announced to be larger than the memory costs nothing that stays | `alone::http::a_body_announced_larger_than_the_memory_costs_nothing_that_stays` |
//! | what a refused body contains is never served | `alone::http::requests_in_a_refused_body_are_not_served` |
//! | and a client that comes back from the same port is served | `alone::http::a_client_that_comes_back_from_the_port_of_an_ended_connection_is_served` |
//! | a huge `Content-Length` ends only its own connection | `alone::http::a_huge_content_length_ends_only_its_own_connection` |
//! | the memory of an endless header line is freed | `alone::http::an_endless_header_line_ends_its_connection_and_its_memory_is_freed` |
//! | also with one processor | `alone::http::with_one_processor_of_several_the_memory_of_endless_headers_is_freed` |
//! | whichever threads have the arenas | `server::limits::glibc::on_one_processor_the_arenas_of_idle_threads_are_trimmed` |
//! | a thousand such clients take at most 256 MiB | `alone::http::a_thousand_clients_with_endless_headers_take_at_most_256_mib` |
//! | an incomplete request is cut off after 10 s | `alone::http::a_request_incomplete_after_10_s_ends_its_connection_and_a_waiting_lock_goes_on` |
//! | an idle connection is ended after ten minutes, and a waiting LOCK is not | `server::tiny::unfinished::an_idle_connection_is_ended_after_ten_minutes_and_a_lock_that_waits_is_not` |
//! | after thousands of random strings the server and its locks are unchanged | `alone::http::after_thousands_of_random_strings_the_server_and_its_locks_are_unchanged` |
//! | pipelined requests delay nobody else | `alone::http::a_hundred_thousand_pipelined_requests_delay_nobody_else` |
//! | a client that never reads delays nobody | `alone::http::a_client_that_never_reads_delays_nobody_and_loses_its_connection` |
//! | exactly one thread takes requests at any time | `server::workers::leadership::tests::model::in_every_interleaving_one_thread_leads_and_a_deposed_leader_notices` |
//! | even if the system has no thread for another one | `server::workers::leadership::tests::model::in_every_interleaving_a_lead_without_a_thread_is_kept_until_there_is_one` |
//! | **A server as a process** | |
//! | `start` returns the process ID once the server answers | `process::start_returns_the_childs_pid_once_it_answers` |
//! | also beside busy threads | `process::every_start_beside_busy_threads_serves` |
//! | `stop` ends waits and frees the port | `process::stop_ends_waiting_locks_and_frees_the_port` |
//! | waiting requests, and those pipelined behind them, are answered when the server ends | `alone::http::requests_behind_a_waiting_lock_are_answered_when_the_server_ends` |
//! | a busy port is tried again as configured | `process::a_busy_port_is_tried_again_as_configured` |
//! | options out of range are refused | `process::options_out_of_range_are_refused_before_anything_is_bound` |
//! | a started server ends with its parent, however the parent ends | `process::the_child_ends_with_its_parent_however_the_parent_ends` |
//! | except with the option to outlive it | `process::a_child_outlives_its_parent_with_the_option` |
//! | it inherits no descriptors | `process::the_child_inherits_no_descriptors` |
//! | no signal settings, buffers or exit functions | `process::the_child_does_not_inherit_the_parents_signals_buffers_and_exit_functions` |
//! | and none of the parent's standard streams | `process::many_servers_and_the_pipe_end_with_a_parent_that_is_killed` |
//! | Ctrl-C reaches only the program | `process::ctrl_c_reaches_the_parent_and_not_the_server` |
//! | a server that hangs is ended | `process::a_hung_child_is_ended_by_its_watchdog` |
//! | no start makes a second copy of the program | `process::a_parent_killed_during_start_leaves_no_second_copy_of_itself` |
//! | a program with more rights than its caller is not executed again | `process::a_program_with_more_rights_than_its_caller_is_not_executed_again` |
//! | the error of a failed start has the reason | `process::the_error_of_a_child_that_cannot_serve_has_the_reason` |
//! | SHUTDOWN ends a server that allows it | `wire::shutdown_ends_a_server_that_allows_it` |
//! | the log goes to its file | `harness::a_started_server_logs_to_the_file_of_its_options` |
//! | `spawn` serves in this process | `harness::a_spawned_server_serves_in_this_process_and_frees_its_port_when_it_is_stopped` |
//! | and leaves no descriptors | `process::many_spawned_servers_come_and_go_without_leaving_descriptors` |
//! | `run` ends on a signal, and two servers share the signals | `process::two_runs_in_one_process_share_the_signals` |
//! | handles dropped in a forked child have no effect | `process::handles_dropped_in_a_forked_child_have_no_effect` |
//! | each side of a fork gets its own answers | `process::a_client_on_both_sides_of_a_fork_gets_its_own_answers` |
//! | `run` reports READY and STOPPING to a service manager | `service::run_reports_that_it_serves_and_that_it_stops` |
//! | and serves on the sockets that it gets | `service::run_serves_on_the_sockets_of_a_service_manager` |
//! | which it leaves for the next server | `service::a_client_that_connects_while_no_server_runs_is_served_by_the_next_one` |
//! | and leaves unchanged, with `bind_to` | `service::a_server_leaves_borrowed_listeners_unchanged` |
//! | a descriptor that is not a TCP listener is refused | `service::a_descriptor_that_is_not_a_tcp_listener_is_refused_with_its_kind` |
//! | systemd accepts the units of the guide | `service::systemd_accepts_the_units_of_the_operations_page` |
//! | as process 1 it ends on SIGTERM | `service::as_process_1_run_ends_on_sigterm_and_ping_is_its_health_check` |
//! | without `/proc` it does not start, and prints why | `container::without_proc_no_server_starts_and_it_says_why` |
//! | without `/dev/null` the error names it | `container::without_dev_null_no_server_starts_in_a_process_of_its_own_and_the_error_names_it` |
//! | nginx, HAProxy and Caddy, configured as in the guide, pass names and `Host` on | `proxies::a_proxy_of_the_page_passes_on_names_with_a_slash_the_public_name_and_head` |
//! | send a LOCK once | `proxies::a_proxy_of_the_page_sends_a_lock_once` |
//! | let it wait | `proxies::behind_a_proxy_of_the_page_a_lock_may_wait_longer_than_the_proxys_default` |
//! | and free the place of a client that hangs up | `proxies::a_client_that_hangs_up_at_a_proxy_of_the_page_leaves_the_queue` |
//! | **The client** | |
//! | a LOCK whose connection breaks at any byte is granted once | `client::a_lock_whose_connection_is_reset_at_any_byte_is_granted_once` |
//! | a release whose connection breaks at any byte releases | `client::a_release_whose_connection_breaks_at_any_byte_releases_and_returns_true` |
//! | an idle connection that the server closed is no error | `client::an_idle_connection_that_was_closed_meanwhile_is_no_error` |
//! | a waiter whose connection breaks keeps its place | `client::a_waiter_whose_connection_breaks_keeps_its_place` |
//! | `remaining` is never too long | `client::the_remaining_time_of_a_lease_is_never_more_than_the_server_has` |
//! | the answer of a proxy is none of the server: a LOCK keeps waiting | `proxied::a_lock_keeps_waiting_while_a_proxy_answers_that_the_server_is_away` |
//! | in the end the exit code is 69 | `proxied::if_only_a_proxy_answers_the_exit_code_is_69_with_that_reason` |
//! | a LOCK may wait longer than a proxy's default | `proxied::a_lock_keeps_its_place_behind_a_proxy_that_times_out_sooner` |
//! | it asks for at most `proxy_timeout` at a time | `proxied::a_lock_behind_a_proxy_asks_for_at_most_proxy_timeout_at_a_time` |
//! | `LOCK_SERVER` may be a URL with a prefix | `proxied::a_url_with_a_prefix_leads_through_a_proxy` |
//! | also with a real nginx | `proxied::behind_a_real_nginx_a_lock_survives_an_absent_server_and_nginxs_timeout` |
//! | `LOCK_SERVER` may be `https://`, with the feature `tls` | `tls::the_command_locks_renews_verifies_and_unlocks_over_tls` |
//! | `exec` passes it on | `tls::exec_passes_the_url_on_and_holds_its_key_over_tls` |
//! | without the feature it is refused, and the error names the feature | `command::https_without_the_feature_is_wrong_usage_that_names_the_feature` |
//! | an untrusted certificate is exit 69, with the reason | `tls::an_untrusted_certificate_is_exit_69_with_the_reason` |
//! | and the client's error has the cause as data | `tls::a_clients_error_has_the_tls_failure_as_data` |
//! | a TLS record without an answer does not end the connection | `tls::a_tls_record_without_an_answer_does_not_end_the_connection` |
//! | the simple `unlock` is not repeated | `client::an_unlock_without_a_fence_is_not_repeated` |
//! | a time out of the server's range is refused, with the range and the server's option | `client::times_outside_the_servers_range_are_refused_with_that_range` |
//! | `lock_all` locks all keys or none | `client::lock_all_locks_none_if_one_is_taken` |
//! | `guard_all` guards all keys or none | `harness::guard_all_guards_all_keys_or_none` |
//! | a lease that the client does not hold does not become a guard | `harness::a_lease_that_this_client_does_not_hold_does_not_become_a_guard` |
//! | and one whose server does not answer does | `harness::a_lease_becomes_a_guard_while_the_server_does_not_answer` |
//! | a guard renews its lease | `guard::a_guard_renews_its_lease_again_and_again_under_one_fence` |
//! | a guard dropped by a panic unlocks | `guard::a_guard_that_a_panic_drops_unlocks` |
//! | a check returns which other server answers, and whether it was restarted or is one of two | `other_server::a_check_returns_which_other_server_answers` |
//! | two servers behind one address are recognised by their answers | `other_server::a_server_that_answers_again_after_another_is_reported_as_one_of_two` |
//! | a guard's renewal finds another server | `other_server::a_renewal_answered_by_another_server_loses_the_lease_with_that_reason` |
//! | another server's answer is not a plain no | `other_server::another_servers_answer_about_a_lease_is_not_a_no` |
//! | a restarted server without a store is another one | `other_server::a_restarted_server_without_a_store_is_another_server` |
//! | servers without `Lock-Server` are not distinguished | `other_server::servers_without_names_are_not_distinguished` |
//! | a repeated release is judged by the server that answers | `client::a_release_answered_by_another_server_is_an_error` |
//! | the next run of a server with its store counts as the same one, for RENEW and VERIFY | `other_server::a_lease_is_valid_at_the_next_run_of_its_store_and_is_renewed_there` |
//! | with another store, or none, it does not | `other_server::with_another_store_or_none_another_server_answers` |
//! | two runs of one store are never taken for two servers | `other_server::two_runs_of_one_store_are_never_taken_for_two_servers` |
//! | a guard continues there | `other_server::a_guard_continues_at_the_next_run_of_its_store` |
//! | so does a command of `exec` | `exec::after_a_restart_with_a_store_the_command_runs_on` |
//! | a release with a lost answer is true if the next run has the same store | `client::a_release_with_a_lost_answer_is_true_if_the_next_run_has_the_same_store` |
//! | and an error if the lease may have run out | `client::a_release_at_the_next_run_is_an_error_if_the_lease_may_have_run_out` |
//! | the guards of several keys wait together for a silent server when they are dropped | `guard::the_guards_of_several_keys_wait_together_for_a_silent_server` |
//! | a guard learns that its lease is over | `guard::a_guard_learns_from_the_server_that_its_lease_is_over` |
//! | a lease that can't be renewed is lost at its deadline | `guard::a_lease_that_cannot_be_renewed_is_lost_at_its_deadline_for_good` |
//! | a thousand guards take a few threads | `process::a_thousand_guards_are_renewed_by_a_few_threads` |
//! | a wait can be cancelled | `harness::a_wait_cancelled_from_another_thread_leaves_the_queue` |
//! | an endless wait keeps its place | `harness::an_endless_wait_outlasts_the_servers_longest_wait_and_keeps_its_place` |
//! | between two turns of a long wait its place is not left | `harness::between_two_turns_a_wait_is_still_the_first_in_the_queue` |
//! | the error of an absent server has the address, the number of tries and the cause | `process::the_error_of_an_absent_server_has_the_address_and_the_number_of_tries` |
//! | a refusal has its reason, and whether to try again | `harness::a_refusal_has_its_reason_and_whether_to_try_again` |
//! | an answer with another request ID is an error | `harness::an_answer_with_another_request_id_is_an_error` |
//! | a program finds the server by `LOCK_SERVER` | `harness::a_program_under_test_finds_the_server_by_its_environment` |
//! | a server listens on each address of its host name, with one port, and `stop` frees all | `names::a_started_server_listens_on_every_address_of_a_name_with_one_port_and_stop_frees_all` |
//! | so does a spawned server | `names::a_spawned_server_listens_on_every_address_of_a_name` |
//! | an address that the machine does not have is left out with a warning | `names::an_address_that_cannot_be_listened_on_is_left_out_with_a_warning` |
//! | a port that is busy on one of them is an error | `names::a_port_that_is_busy_on_one_of_the_addresses_is_an_error` |
//! | a name that looks public and is loopback gets a warning | `names::a_name_that_looks_public_and_is_loopback_gets_one_warning` |
//! | a client tries each address of a name | `names::a_client_reaches_a_server_that_listens_on_only_one_address_of_a_name` |
//! | **Looking in** | |
//! | contended keys come first, and each kind in the order of its next change | `looking::contended_keys_come_first_in_the_order_of_their_next_change` |
//! | filters by prefix and by any holder | `looking::keys_are_found_by_prefix_and_by_any_of_their_holders` |
//! | in pages each key is seen once | `looking::of_2500_keys_in_pages_each_is_seen_once_except_one_renewed_meanwhile` |
//! | a bad limit or cursor is 400 | `looking::a_bad_limit_or_cursor_is_400_in_a_sentence` |
//! | 100 holders are shown, and all are counted | `looking::of_more_than_100_holders_100_are_shown_and_all_are_counted` |
//! | a lease that has ended is not shown | `looking::a_lease_that_has_ended_is_not_shown` |
//! | a key has its queue | `looking::a_key_is_shown_with_its_queue_in_order_with_times_slots_and_notes` |
//! | a free key has neither holders nor a queue | `looking::a_free_key_has_neither_holders_nor_a_queue` |
//! | names of any text are returned unchanged | `looking::names_of_any_text_are_returned_unchanged` |
//! | HEAD and POST work like GET | `looking::head_and_post_work_like_get` |
//! | looking needs the role read | `looking::looking_needs_the_role_read` |
//! | times of day and seconds agree | `looking::times_of_day_and_seconds_agree` |
//! | the page of the guide names exactly the fields that exist | `looking::each_field_is_documented_and_each_documented_field_exists` |
//! | the error for a server that is too old says that | `looking::the_error_for_a_server_that_is_too_old_says_that` |
//! | an answer that is not a list is a bad reply | `looking::an_answer_that_is_not_a_list_is_a_bad_reply_and_a_proxys_page_an_interruption` |
//! | a list that breaks off is requested again | `looking::a_list_that_breaks_off_is_requested_again` |
//! | a bad filter is refused without a request | `looking::a_filter_that_no_name_can_match_is_refused_without_a_request` |
//! | on a pipe `list` prints lines with tabs and seconds, escaped and not truncated | `listing::list_has_a_line_for_each_holder_with_tabs_and_seconds_on_a_pipe` |
//! | with the requested columns | `listing::list_shows_the_requested_columns_of_the_requested_keys` |
//! | an empty list has only its headings | `listing::an_empty_list_prints_its_headings_and_exits_0` |
//! | on a terminal lines fit | `listing::on_a_terminal_lines_fit_and_times_are_short` |
//! | it prints all pages, and ends quietly without a reader | `listing::list_prints_all_pages_as_lines_and_as_json_and_ends_quietly_without_a_reader` |
//! | `show` prints holders and queue, and exits 1 for a free key | `listing::show_prints_holders_and_queue_and_exits_1_for_a_free_key` |
//! | without a server both exit 69 | `listing::without_a_server_list_and_show_are_69` |
//! | **The command** | |
//! | the verbs print the wire's answers, and set exit codes | `command::the_verbs_print_the_wires_answers_and_set_an_exit_code` |
//! | start, status, restart, stop | `command::a_daemon_is_started_asked_restarted_and_stopped` |
//! | a server whose pid file is gone is stopped by its port | `command::a_server_whose_pid_file_is_gone_is_found_and_stopped_by_its_port` |
//! | so is one with another pid file, which can also be restarted | `command::a_server_with_another_pid_file_is_found_by_its_port_and_restarted` |
//! | `stop` and `restart` act on the server of this machine that `LOCK_SERVER` names | `command::stop_and_restart_act_on_the_server_of_this_machine_that_the_environment_names` |
//! | a pid file of a server on another address is not theirs | `command::a_pid_file_of_a_server_on_another_address_is_not_that_of_the_server_in_the_environment` |
//! | `restart` does not move that server to the default host | `command::restart_does_not_move_the_server_in_the_environment_to_the_default_host` |
//! | `restart` keeps the options that are not given anew | `command::restart_keeps_the_options_that_are_not_given_anew` |
//! | also after a crash | `command::restart_after_a_crash_keeps_the_options_of_the_last_server` |
//! | one that fails leaves a server with the old options | `command::a_restart_that_fails_leaves_a_server_with_the_old_options` |
//! | and the folder where their paths start | `command::restart_keeps_the_paths_of_the_folder_where_the_server_was_started` |
//! | root does not restart another user's server | `command::root_does_not_restart_another_users_server` |
//! | a client that reaches no server learns where one serves | `command::a_client_that_reaches_no_server_learns_where_one_serves` |
//! | `restart` with a pid file alone keeps the port | `command::restart_with_only_a_pid_file_keeps_the_port` |
//! | `restart` at an address of another server stops nothing | `command::restart_at_an_address_that_another_server_has_leaves_the_server_alone` |
//! | `stop` and `status` refuse a pid file with another port than the given one | `command::a_pid_file_with_another_port_than_the_one_that_is_given_is_refused` |
//! | `start` advises what helps if a server has its pid file | `command::already_running_advises_only_what_helps` |
//! | `status` asks each server that `LOCK_SERVER` or an option names | `command::status_asks_each_server_that_the_environment_or_an_option_names` |
//! | a removed pid file is written again | `command::a_removed_pid_file_is_written_again_and_stop_uses_it` |
//! | no process is signalled because another program names it | `command::a_process_that_is_not_the_answering_server_is_not_signalled` |
//! | nor another user's server | `command::another_users_server_is_not_stopped_by_its_port_and_the_error_names_the_user` |
//! | nor a server that the pid file does not name | `command::stop_with_only_a_pid_file_stops_no_other_server` |
//! | `run` ends by SIGINT and SIGTERM with 0 | `command::sigint_and_sigterm_end_run_with_exit_0_within_a_second_while_locks_wait` |
//! | `run` prints its address only once it serves | `command::run_prints_its_address_only_once_it_serves` |
//! | `run`, `start` and `status` print every address of a host name | `command::run_start_and_status_print_every_address_of_a_host_name` |
//! | of two restarts at once one wins, and the other advises to restart again | `command::of_two_restarts_at_once_the_loser_advises_to_restart_again` |
//! | a no prints the holder, its remaining time and the number of waiters | `command::a_no_prints_the_holder_its_remaining_time_and_the_number_of_waiters_on_standard_error` |
//! | and whether the fence was stale | `command::a_stale_fence_of_one_of_several_holders_is_reported_as_stale` |
//! | a full server is exit 69, and a taken key is exit 1 | `command::a_full_server_is_exit_69_and_a_taken_key_is_exit_1` |
//! | without a server the exit code is 69 | `command::without_a_server_the_exit_code_is_69_and_the_error_says_how_to_start_one` |
//! | wrong usage is exit 2 | `command::wrong_usage_is_exit_2_and_names_the_help` |
//! | an answer that can't be written is exit 71 | `command::an_answer_that_cannot_be_written_is_exit_71_and_one_short_line` |
//! | no name sends control characters to a terminal | `command::no_name_sends_control_characters_to_a_terminal` |
//! | wrong usage suggests the right word | `command::wrong_usage_suggests_the_right_word` |
//! | the help of a verb fits a screen | `command::the_help_of_each_verb_fits_a_screen_and_names_the_values_of_options` |
//! | every verb has help | `command::every_verb_has_help_with_an_example_and_exit_codes` |
//! | `LOCK_SERVER_LOG` overrides `RUST_LOG` | `command::lock_server_log_overrides_rust_log_unless_it_is_empty` |
//! | a shell completes verbs, options and the command of `exec` | `command::bash_completes_verbs_options_and_the_command_of_exec` |
//! | `--shell` | `command::a_shell_reads_what_lock_shell_prints_whatever_the_key` |
//! | the environment gives the address and the name | `command::options_override_the_environments_address_and_name` |
//! | commands of one shell have one name, and two shells have two | `command::commands_of_one_shell_have_one_name_and_two_shells_have_two` |
//! | two containers with one host name have two | `command::two_containers_of_one_host_name_have_two_names` |
//! | **exec** | |
//! | two commands never run at the same time | `exec::two_execs_that_race_two_hundred_times_never_overlap` |
//! | `exec` exits with the command's code | `exec::exec_exits_with_the_commands_exit_code` |
//! | 128+N if a signal ended the command | `exec::a_command_ended_by_a_signal_is_exit_128_plus_its_number` |
//! | 64 for wrong usage | `exec::wrong_usage_of_exec_is_exit_64_and_runs_nothing` |
//! | 69 without a server | `exec::without_a_server_and_without_a_wait_exec_is_exit_69` |
//! | also without one at the start, and then it learns the holder and the limits later | `exec::an_exec_that_starts_before_its_server_learns_the_holder_and_the_longest_lease_later` |
//! | its options bound how long it waits for an absent server | `exec::exec_waits_for_an_absent_server_as_long_as_its_options_say` |
//! | or a silent one, which may have locked the key | `exec::exec_waits_for_a_silent_server_as_long_as_its_options_say_and_warns_that_the_key_may_be_locked` |
//! | it waits for a server that can't serve now, and prints that | `exec::exec_waits_for_a_server_that_cannot_serve_now_and_prints_that` |
//! | the default note is the name of the command | `exec::the_default_note_is_the_commands_name_without_its_arguments` |
//! | 71 without memory for a thread | `exec::without_memory_for_a_thread_exec_is_exit_71_or_69_and_runs_nothing` |
//! | 75, or the code of `-E`, if the key is not obtained | `exec::a_key_that_is_not_obtained_is_exit_75_or_the_code_of_the_option_and_runs_nothing` |
//! | 123 if the command exceeds `--timeout` | `exec::a_command_that_exceeds_the_option_timeout_is_ended_with_exit_123` |
//! | waiters reconnect to a restarted server | `exec::waiters_reconnect_to_a_restarted_server_and_none_fails` |
//! | 124 for a lost lease | `exec::a_lost_lease_is_exit_124` |
//! | 126 and 127 for a command that can't be run | `exec::a_command_that_cannot_be_executed_is_exit_126_and_a_missing_one_127` |
//! | sh runs a script without a `#!` line | `exec::a_script_without_a_first_line_that_names_its_interpreter_is_run_by_sh` |
//! | a short command with a free key takes no further thread | `exec::a_short_command_with_a_free_key_takes_no_further_thread` |
//! | a late answer grants the key once | `exec::a_server_that_answers_late_grants_the_first_lock_once` |
//! | a signal ends it even before the first answer | `exec::a_signal_ends_exec_before_its_first_request_is_answered` |
//! | a waiting `exec` is one process | `exec::a_waiting_exec_is_one_process` |
//! | a signal ends the wait | `exec::a_signal_during_the_wait_is_exit_128_plus_its_number_and_leaves_the_queue` |
//! | Ctrl-C ends the script that runs `exec` | `exec::ctrl_c_ends_the_script_that_runs_exec` |
//! | it waits for a server that is away, and prints that once | `exec::exec_waits_for_a_server_that_is_away_for_a_while_and_prints_that_once` |
//! | it prints that it waits for a silent server | `exec::exec_prints_that_it_waits_for_a_silent_server` |
//! | a command outlives a server that is silent for a while | `exec::with_the_default_lease_a_command_outlives_a_server_that_is_silent_for_a_while` |
//! | without a terminal it prints the holder once | `exec::without_a_terminal_exec_prints_the_holder_once` |
//! | a command keeps the key for as long as it runs | `exec::a_command_that_takes_longer_than_its_lease_keeps_the_key` |
//! | and does not outlive its lease | `exec::after_the_servers_end_the_command_is_killed_before_its_lease_ends` |
//! | it forwards signals | `exec::exec_forwards_signals_to_the_command` |
//! | after SIGKILL nothing runs on | `exec::after_sigkill_of_exec_nothing_runs_on_and_the_lease_runs_out` |
//! | the command's environment has key, name, fence and server | `exec::the_commands_environment_has_key_name_fence_and_server` |
//! | an `exec` within an `exec` fails at once | `exec::a_nested_exec_for_the_same_key_fails_at_once` |
//! | also with a cleared environment between them | `exec::a_nested_exec_knows_its_ancestors_without_the_environment` |
//! | also as another user | `exec::a_nested_exec_of_another_user_knows_its_ancestors` |
//! | also beside other holders | `exec::a_nested_exec_knows_its_ancestors_beside_other_holders` |
//! | also if that shows only during the wait | `exec::a_nested_exec_notices_during_its_wait_that_only_its_ancestors_are_left` |
//! | and waits if another holder's end makes room for it | `exec::a_nested_exec_waits_if_another_holders_end_makes_room_for_it` |
//! | an `exec` whose name already holds the key is refused at once | `exec::an_exec_whose_name_already_holds_the_key_is_refused_with_the_reason` |
//! | after a lost lease two commands overlap for at most a second | `exec::after_a_lost_lease_two_commands_overlap_for_at_most_a_second` |
//! | `--also` takes all keys or none, and two execs never deadlock | `exec::two_execs_with_the_same_keys_in_another_order_take_turns` |
//! | `-n` takes all or none | `exec::with_option_n_exec_takes_all_keys_or_none` |
//! | the keys that it has are renewed while it waits for the rest | `exec::exec_keeps_its_keys_while_it_waits_for_the_rest_and_the_environment_has_all` |
//! | one lost lease ends the command, and the others are unlocked | `exec::when_one_of_several_keys_is_lost_the_command_is_killed_and_the_others_are_unlocked` |
//! | all renewals use one connection | `exec::all_renewals_use_one_connection` |
//! | an address that worked is kept if the name can't be resolved any more | `exec::an_address_that_worked_is_kept_if_the_name_cannot_be_resolved_any_more` |
//! | as process 1 it reaps orphans | `exec::as_process_1_exec_reaps_orphans` |
//! | also during the wait | `exec::as_process_1_exec_reaps_orphans_during_its_wait` |
//! | a repeated end signal is forwarded once in a moment | `exec::a_repeated_end_signal_is_forwarded_once_in_a_moment` |
//! | the error for a shell command line advises to use a shell | `exec::the_error_for_a_shell_command_line_advises_to_use_a_shell` |
//! | `RUST_LOG` is for the command | `exec::rust_log_is_for_the_command_and_exec_has_a_variable_of_its_own` |
//! | an unread log delays neither renewals nor the end | `exec::an_unread_log_delays_neither_renewals_nor_the_end` |
//! | on a terminal a line shows the holder | `exec::on_a_terminal_a_line_shows_the_holder_until_the_key_is_granted` |
//! | 124 with the reason if another server answers | `exec::a_lease_that_another_server_does_not_know_is_exit_124_with_the_reason` |
//! | also for the unlock | `other_server::exec_prints_that_another_server_answered_its_unlock` |
//! | **The guide** | |
//! | the command shows its pages as plain text | `help::each_topic_is_shown_in_80_columns_as_plain_text` |
//! | and writes a man page | `help::groff_and_mandoc_show_the_man_page_without_a_warning` |
//! | each block of shell does what its page says, and ends what it started | `guide::each_block_of_shell_on_a_page_does_what_the_page_says` |
//! | only the listed blocks are not run, and all parse | `guide::only_the_listed_blocks_are_not_run_and_all_blocks_parse` |
//! | the error of a wrong page has its line | `guide::the_error_of_a_wrong_page_has_its_line_command_and_output` |
//! | **The architecture** | |
//! | no import circles | `architecture::there_are_no_import_circles` |
//! | a room imports only what its row names | `architecture::a_room_imports_only_what_its_row_of_the_architecture_page_names` |
//! | the command uses only the public API | `architecture::the_command_uses_only_the_public_api` |
//! | tiny_http is named in one room | `architecture::tiny_http_is_named_only_in_its_own_room` |
//! | files and functions are short | `architecture::files_have_at_most_450_lines_without_tests_and_functions_at_most_60` |
//! | each type name is unique | `architecture::no_type_name_is_defined_twice` |

#[path = "../common.rs"]
mod common;

mod access;
mod architecture;
mod break_lock;
mod classic;
mod client;
mod cluster;
mod cluster_client;
mod cluster_command;
mod cluster_failovers;
mod cluster_trial;
mod command;
mod container;
mod contention;
mod etcd;
mod etcd_users;
mod events;
mod exec;
mod guard;
mod guide;
mod harness;
mod help;
mod leases;
mod listing;
mod looking;
mod metrics;
mod names;
mod other_server;
mod page;
mod proxied;
mod proxies;
mod service;
mod slots;
mod store;
mod store_command;
mod store_format;
mod store_full;
mod store_held;
mod store_trial;
mod trial;
mod wall_clock;
mod wire;
mod working_safely;

use std::fs;
use std::path::Path;

const THIS: &str = include_str!("main.rs");

/// The text of a module's file, in `tests/it/`, `tests/` or `src/`.
fn file(modules: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = modules.replace("::", "/") + ".rs";
    ["tests/it", "tests", "src"]
        .iter()
        .find_map(|folder| fs::read_to_string(root.join(folder).join(&path)).ok())
        .unwrap_or_else(|| panic!("no file {path}"))
}

#[test]
fn each_test_that_the_table_names_exists() {
    let rows = THIS.lines().filter_map(|line| line.strip_prefix("//! | "));
    let proofs: Vec<&str> = rows
        .filter_map(|row| row.rsplit_once(" | `")?.1.strip_suffix("` |"))
        .collect();
    assert!(proofs.len() > 100, "too few rows were found");
    for proof in proofs {
        let (modules, name) = proof.rsplit_once("::").expect("module::name");
        let is_there = file(modules).contains(&format!("fn {name}("));
        assert!(is_there, "{proof}");
    }
}

/// The table of tiny_http's defects names tests without their files. Some are unit tests of its room.
#[test]
fn each_test_that_the_table_of_tiny_http_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    for folder in ["tests", "tests/it", "tests/alone", "src/server/tiny"] {
        for entry in fs::read_dir(root.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                tests += &fs::read_to_string(path).expect("text");
            }
        }
    }
    let table = include_str!("../../src/server/tiny.rs");
    let rows = table.lines().filter_map(|line| line.strip_prefix("//! | "));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | "));
    let named: Vec<&str> = cells
        .flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2))
        .collect();
    assert!(named.len() > 8, "too few rows were found: {named:?}");
    for name in named {
        assert!(tests.contains(&format!("fn {name}(")), "{name}");
    }
}

#[test]
fn each_file_of_tests_belongs_to_a_binary() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("it is there");
    for folder in ["tests", "tests/it", "tests/alone"] {
        // In a folder without main.rs, each file is a binary.
        let main = fs::read_to_string(root.join(folder).join("main.rs"));
        for entry in fs::read_dir(root.join(folder)).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            let name = name.to_str().expect("UTF-8");
            let Some(module) = name.strip_suffix(".rs") else {
                continue;
            };
            let is_known = match &main {
                Ok(main) => main.contains(&format!("\nmod {module};")),
                Err(_) => manifest.contains(&format!("\"tests/{name}\"")),
            };
            let is_shared = ["main", "common"].contains(&module);
            assert!(is_known || is_shared, "no binary has {folder}/{name}");
        }
    }
}
