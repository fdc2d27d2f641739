use proptest::collection::vec;
use proptest::prelude::any;
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;

#[test]
fn one_item_takes_no_allocation_and_no_more_room_than_it_needs() {
    assert_eq!(size_of::<Few<std::net::IpAddr>>(), 24);
    assert_eq!(size_of::<FewMap<u16, u16>>(), 16);
    assert_eq!(size_of::<Few<std::sync::Arc<u8>>>(), 16);
}

#[test]
fn maps_print_like_any_map() {
    assert_eq!(format!("{:?}", FewMap::from([(1, "a"), (2, "b")])), r#"{1: "a", 2: "b"}"#);
    assert_eq!(format!("{:?}", Few::from([1])), "[1]");
}

proptest! {
    #[test]
    fn a_list_is_what_a_vector_is(items in vec(any::<u8>(), 0..6), edits in vec((any::<bool>(), 0..6_usize), 0..12)) {
        let mut few: Few<u8> = items.iter().copied().collect();
        let mut plain = items.clone();
        prop_assert_eq!(&few, &Few::from(items));
        for (insert, place) in edits {
            if insert {
                let place = place.min(plain.len());
                few.insert(place, 7);
                plain.insert(place, 7);
            } else if place < plain.len() {
                prop_assert_eq!(few.remove(place), plain.remove(place));
            }
            prop_assert_eq!(&*few, &*plain);
            prop_assert_eq!(&few, &plain.iter().copied().collect::<Few<_>>());
        }
    }

    #[test]
    fn a_map_is_what_an_ordered_map_is(entries in vec((0..6_u16, any::<u16>()), 0..8), more in vec((0..6_u16, any::<u16>()), 0..8)) {
        let mut few: FewMap<u16, u16> = entries.iter().copied().collect();
        let mut plain: BTreeMap<u16, u16> = entries.into_iter().collect();
        for (key, value) in more {
            prop_assert_eq!(few.insert(key, value), plain.insert(key, value));
            prop_assert!(few.iter().eq(&plain) && few.into_iter().eq(&plain));
            prop_assert!(few.keys().eq(plain.keys()) && few.values().eq(plain.values()));
        }
        for key in 0..6 {
            prop_assert_eq!(few.get(&key), plain.get(&key));
            prop_assert_eq!(few.contains_key(&key), plain.contains_key(&key));
        }
        prop_assert_eq!((few.len(), few.is_empty()), (plain.len(), plain.is_empty()));
        prop_assert_eq!(few, FewMap::from(plain));
    }
}
