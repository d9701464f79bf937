use super::*;

const POLL: Duration = Duration::from_secs(60);
const DONE: Ended = Ended::Nothing { waits: false };
const WAITS: Ended = Ended::Nothing { waits: true };

fn look(number: u64) -> Option<Fingerprint> {
    Some(Fingerprint(number))
}

/// A schedule whose first collection found nothing to do, and when that ended.
fn settled(ended: Ended) -> (Schedule, Instant) {
    let (mut schedule, now) = (Schedule::new(POLL), Instant::now());
    assert_eq!(schedule.next(now, false, false, || look(1)), Next::Collect, "all are collected at the start");
    schedule.ended(now, Duration::from_millis(1), ended, look(1), look(1));
    (schedule, now)
}

#[test]
fn events_without_a_change_are_nothing() {
    let (mut schedule, now) = settled(DONE);
    assert_eq!(schedule.next(now, true, false, || look(1)), Next::Nothing);
    assert_eq!(schedule.next(now, true, false, || look(2)), Next::Collect);
}

#[test]
fn a_poll_and_a_wish_need_no_change() {
    let (mut schedule, now) = settled(DONE);
    assert_eq!(schedule.deadline(now), Some(now + POLL));
    assert_eq!(schedule.next(now + POLL, false, false, || look(1)), Next::Collect);
    let (mut schedule, now) = settled(DONE);
    schedule.ask();
    assert_eq!(schedule.next(now, false, false, || look(1)), Next::Collect);
}

#[test]
fn what_waits_is_tried_with_any_event_but_not_without_rest() {
    let (mut schedule, now) = settled(WAITS);
    assert!(schedule.waits_for_release());
    assert_eq!(schedule.next(now, false, false, || look(1)), Next::Nothing);
    assert_eq!(schedule.next(now, true, false, || look(1)), Next::Nothing);
    assert_eq!(schedule.deadline(now), Some(now + SHORTEST_REST));
    assert_eq!(schedule.next(now + SHORTEST_REST, false, false, || look(1)), Next::Collect);
    assert!(!schedule.waits_for_release());
}

#[test]
fn progress_is_followed_by_another_look_at_once() {
    let (mut schedule, now) = settled(Ended::Progress);
    assert_eq!(schedule.next(now, false, false, || look(1)), Next::Collect);
}

#[test]
fn a_folder_that_changes_while_nothing_is_done_is_looked_at_ever_more_seldom() {
    let (mut schedule, mut now) = (Schedule::new(POLL), Instant::now());
    let mut waits = Vec::new();
    for _ in 0..9 {
        assert_eq!(schedule.next(now, false, false, || look(0)), Next::Collect);
        schedule.ended(now, Duration::ZERO, WAITS, look(1), look(2));
        let next = schedule.deadline(now).unwrap();
        waits.push((next - now).as_secs());
        now = next;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn what_was_stopped_stays_so_until_something_changes() {
    let (mut schedule, now) = (Schedule::new(POLL), Instant::now());
    schedule.next(now, false, false, || look(1));
    schedule.ask();
    schedule.ended(now, Duration::ZERO, Ended::Stopped, look(1), look(2));
    assert_eq!(schedule.next(now, true, false, || look(2)), Next::Nothing);
    assert_eq!(schedule.deadline(now), Some(now + POLL));
    assert_eq!(schedule.next(now, true, false, || look(3)), Next::Collect);
}

#[test]
fn a_change_during_a_collection_is_collected_beside_it_where_there_is_room() {
    let (mut schedule, now) = (Schedule::new(POLL), Instant::now());
    schedule.next(now, false, false, || look(1));
    assert_eq!(schedule.next(now, true, false, || look(2)), Next::Nothing);
    assert_eq!(schedule.deadline(now), Some(now + LOOK_FOR_ROOM));
    assert_eq!(schedule.next(now, false, true, || look(2)), Next::CollectBeside);
    assert_eq!(schedule.next(now, true, true, || look(3)), Next::Nothing, "two are enough");
    let took = Duration::from_millis(50);
    schedule.ended(now, took, DONE, look(2), look(2));
    assert_eq!(schedule.next(now, false, true, || look(3)), Next::Nothing, "it rests");
    assert_eq!(schedule.next(now + took * REST, false, true, || look(3)), Next::CollectBeside);
    schedule.ended(now, took, Ended::Stopped, look(2), look(2));
    schedule.ended(now, took, Ended::Progress, look(2), look(2));
    assert_eq!(schedule.next(now, false, false, || look(2)), Next::Nothing, "stopped is stopped");
}

#[test]
fn what_cannot_be_reached_is_tried_every_second() {
    let (schedule, now) = settled(Ended::Unreachable);
    assert_eq!(schedule.deadline(now), Some(now + Duration::from_secs(1)));
    let (mut schedule, now) = settled(Ended::Unreachable);
    assert_eq!(schedule.next(now + Duration::from_secs(1), false, false, || look(1)), Next::Collect);
}
