use super::*;

const SHARE: Share = Share { own: 8, one_max: 512, common_max: 2_048 };

/// Pods that take what they get, in turn: what each of them holds in the end.
fn greedy(pods: usize) -> Vec<usize> {
    let mut held = vec![0; pods];
    for pod in 0..pods {
        take_all(&mut held, pod);
    }
    held
}

fn take_all(held: &mut [usize], pod: usize) {
    while SHARE.admits(held[pod], common(held)) {
        held[pod] += 1;
    }
}

fn common(held: &[usize]) -> usize {
    held.iter().map(|held| SHARE.common_of(*held)).sum()
}

#[test]
fn one_alone_has_its_full_number_and_no_more() {
    assert_eq!(greedy(1), [512]);
}

#[test]
fn whoever_comes_after_greedy_ones_has_its_own_places_all_the_same() {
    for pods in [4, 50, 400] {
        let held = greedy(pods);
        assert!(common(&held) < SHARE.common_max, "{held:?}");
        assert!(held.iter().all(|held| (SHARE.own..=SHARE.one_max).contains(held)), "{held:?}");
    }
    let held = greedy(4);
    assert!(held[3] > 200, "a fourth one has far more than its own: {held:?}");
}

#[test]
fn places_given_back_go_to_those_that_hold_fewer() {
    let mut held = greedy(20);
    // Each gives one back and asks for one, again and again, as queries end and others begin.
    for _ in 0..10_000 {
        held.iter_mut().for_each(|held| *held -= 1);
        for pod in 0..held.len() {
            take_all(&mut held, pod);
        }
    }
    let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
    assert!(most - least <= 100, "{held:?}");
}
