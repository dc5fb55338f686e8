//! That nothing goes wrong in any order of events, and that each mutant is caught.

use stateright::{Checker as _, HasDiscoveries, Model as _};

use crate::rules::Mutant;
use crate::steps::Fleet;

/// Every reachable state.
fn nothing_goes_wrong(fleet: Fleet) {
    let checker = fleet.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    eprintln!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

fn is_caught(fleet: Fleet, mutant: Mutant, property: &'static str) {
    let found = HasDiscoveries::AnyOf([property].into());
    let checker = fleet.without(mutant).checker().threads(2).finish_when(found).spawn_bfs().join();
    let accident = checker.discovery(property);
    let accident = accident.unwrap_or_else(|| panic!("{mutant:?} was not caught"));
    eprintln!("{mutant:?}: {:?}", accident.into_actions());
}

const SINGLE_WRITER: &str = "single writer";
const ACKED_REPORTS: &str = "no acked report lost";
const REASONS: &str = "nothing killed without a reason";

#[test]
fn a_host_that_is_cut_off_dies_freezes_or_loses_messages_never_brings_a_second_writer() {
    nothing_goes_wrong(Fleet::of_broken_hosts());
}

#[test]
fn a_store_that_goes_back_in_time_never_brings_a_second_writer_and_kills_nothing() {
    nothing_goes_wrong(Fleet::of_a_restored_store());
}

#[test]
fn a_restore_over_the_end_of_a_lease_brings_no_second_writer() {
    nothing_goes_wrong(Fleet::of_a_long_restore());
}

#[test]
fn stops_and_starts_lose_no_report_and_kill_nothing_else() {
    nothing_goes_wrong(Fleet::of_stops());
}

#[test]
fn an_order_of_the_session_before_may_have_been_given_to_another_since() {
    is_caught(Fleet::of_broken_hosts(), Mutant::OldOrdersHold, SINGLE_WRITER);
}

#[test]
fn without_a_margin_the_new_one_may_start_before_the_old_one_has_ended() {
    is_caught(Fleet::of_broken_hosts(), Mutant::NoMargin, SINGLE_WRITER);
}

#[test]
fn a_lease_that_counts_from_the_receipt_of_the_ack_is_too_long() {
    is_caught(Fleet::of_broken_hosts(), Mutant::LeaseFromReceipt, SINGLE_WRITER);
}

#[test]
fn a_host_that_takes_a_lower_or_equal_pair_from_the_share_writes_beside_the_new_one() {
    is_caught(Fleet::of_a_restored_store(), Mutant::LowerPairAccepted, SINGLE_WRITER);
}

#[test]
fn a_start_that_goes_on_when_its_session_has_ended_runs_beside_one_that_wrote_at_the_same_moment() {
    is_caught(Fleet::of_a_restored_store(), Mutant::LaunchedCutOff, SINGLE_WRITER);
}

#[test]
fn placing_before_the_release_brings_a_second_writer() {
    is_caught(Fleet::of_broken_hosts(), Mutant::PlaceBeforeRelease, SINGLE_WRITER);
}

#[test]
fn a_clone_that_may_take_the_session_over_proves_an_absence_that_is_none() {
    is_caught(Fleet::of_broken_hosts(), Mutant::CloneAccepted, SINGLE_WRITER);
}

#[test]
fn without_the_fence_process_a_dead_agent_leaves_its_container_writing() {
    is_caught(Fleet::of_broken_hosts(), Mutant::NoFenceProcess, SINGLE_WRITER);
}

#[test]
fn stopping_what_the_store_does_not_know_kills_what_is_wanted() {
    is_caught(Fleet::of_a_restored_store(), Mutant::UnknownIsStopped, REASONS);
}

#[test]
fn raising_a_generation_over_the_shares_without_asking_who_wrote_it_brings_a_second_writer() {
    is_caught(Fleet::of_a_restored_store(), Mutant::RaisedAtOnce, SINGLE_WRITER);
}

#[test]
fn placing_after_a_restore_before_every_host_was_heard_brings_a_second_writer() {
    is_caught(Fleet::of_a_restored_store(), Mutant::PlacedBeforeHeard, SINGLE_WRITER);
}

#[test]
fn placing_while_an_unknown_container_of_the_student_is_held_brings_a_second_writer() {
    is_caught(Fleet::of_a_restored_store(), Mutant::HeldIsForgotten, SINGLE_WRITER);
}

#[test]
fn an_ack_before_the_commit_loses_a_report() {
    is_caught(Fleet::of_stops(), Mutant::AckBeforeCommit, ACKED_REPORTS);
}
