use proptest::prelude::*;

use super::*;

fn place(search: Option<&[&str]>) -> Place {
    let search: Option<Vec<String>> =
        search.map(|list| list.iter().map(|domain| (*domain).to_owned()).collect());
    Place::new("shop", "cluster.local", search.as_deref())
}

fn names_of(host: &str, place: &Place) -> Vec<(String, Option<usize>)> {
    candidates(host, place).into_iter().map(|candidate| (candidate.name, candidate.stripped)).collect()
}

#[test]
fn a_name_of_each_length_has_its_kubernetes_forms_in_order() {
    let place = place(Some(&[]));
    let names = |host| names_of(host, &place).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names("web"), ["web", "web.shop.svc.cluster.local"]);
    assert_eq!(names("web.pay"), ["web.pay", "web.pay.svc.cluster.local", "web.pay.shop.svc.cluster.local"]);
    assert_eq!(
        names("web.pay.svc"),
        ["web.pay.svc", "web.pay.svc.cluster.local", "web.pay.svc.svc.cluster.local"]
    );
    assert_eq!(names("a.web.pay"), ["a.web.pay", "a.web.pay.svc.cluster.local"]);
    assert_eq!(names("a.web.pay.svc"), ["a.web.pay.svc", "a.web.pay.svc.cluster.local"]);
    assert_eq!(names("a.web.pay.xyz"), ["a.web.pay.xyz"]);
    assert_eq!(names("web.pay.svc.cluster.local"), ["web.pay.svc.cluster.local"]);
}

#[test]
fn a_search_domain_is_cut_off_and_the_shorter_name_has_its_forms_too() {
    let found = names_of("api.example.com.shop.svc.cluster.local", &place(None));
    let expected = [
        ("api.example.com.shop.svc.cluster.local", None),
        ("api.example.com", Some(3)),
        ("api.example.com.svc.cluster.local", Some(3)),
        ("api.example.com.shop", Some(4)),
        ("api.example.com.shop.svc", Some(5)),
    ];
    assert_eq!(found, expected.map(|(name, stripped)| (name.to_owned(), stripped)));
}

#[test]
fn the_pods_own_search_list_takes_the_place_of_the_assumed_one() {
    let own = place(Some(&["Corp.Example.", ""]));
    assert_eq!(own.search, ["corp.example"]);
    let names: Vec<_> = names_of("db.corp.example", &own).into_iter().collect();
    assert!(names.contains(&("db".to_owned(), Some(1))), "{names:?}");
    assert!(names.contains(&("db.shop.svc.cluster.local".to_owned(), Some(1))), "{names:?}");
    assert!(names_of("db.shop.svc.cluster.local", &own).iter().all(|(_, stripped)| stripped.is_none()));
}

#[test]
fn a_search_domain_alone_is_not_cut_down_to_nothing() {
    assert_eq!(names_of("svc.cluster.local", &place(None))[0].0, "svc.cluster.local");
    assert!(names_of("cluster.local", &place(None)).iter().all(|(name, _)| !name.is_empty()));
    assert!(names_of("xcluster.local", &place(None)).iter().all(|(_, stripped)| stripped.is_none()));
}

#[test]
fn only_a_name_below_the_clusters_services_is_one() {
    let place = place(None);
    assert!(place.is_cluster_service("web.shop.svc.cluster.local"));
    for host in
        ["svc.cluster.local", ".svc.cluster.local", "web.shop.cluster.local", "web.svc.cluster.localx"]
    {
        assert!(!place.is_cluster_service(host), "{host}");
    }
    assert!(Place::new("a", "", None).is_cluster_service("web.shop.svc.cluster.local"));
}

#[test]
fn wildcards_come_narrowest_first() {
    assert_eq!(wildcards("a.b.c").collect::<Vec<_>>(), ["*.b.c", "*.c"]);
    assert_eq!(wildcards("a").count(), 0);
}

#[test]
fn a_host_is_lower_case_without_the_final_dot_and_has_no_dot_in_a_label() {
    let name = |text: &str| Name::from_ascii(text).unwrap();
    assert_eq!(host(&name("WeB.Shop.")).as_deref(), Some("web.shop"));
    assert_eq!(host(&Name::root()), None);
    let odd = Name::from_labels([&b"a.b"[..], b"c"]).unwrap();
    assert_eq!(host(&odd), None);
    assert_eq!(first_labels(&name("WeB.Shop.svc."), 2), Some(name("WeB.Shop.")));
    assert!(first_labels(&name("WeB.Shop.svc."), 2).unwrap().eq_case(&name("WeB.Shop.")));
}

/// The rules read word for word, on lists of labels.
fn literally(host: &str, place: &Place) -> Vec<(Vec<String>, Option<usize>)> {
    let split = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let namespace = vec![place.namespace.clone()];
    let (svc, domain) = (vec!["svc".to_owned()], split(&place.domain));
    let forms = |name: &Vec<String>| -> Vec<Vec<String>> {
        let ends_in_svc = name.last() == Some(&"svc".to_owned());
        let mut forms = Vec::new();
        if name.len() == 1 {
            forms.push([name.clone(), namespace.clone(), svc.clone(), domain.clone()].concat());
        }
        if name.len() == 2 {
            forms.push([name.clone(), svc.clone(), domain.clone()].concat());
            forms.push([name.clone(), namespace.clone(), svc.clone(), domain.clone()].concat());
        }
        if name.len() == 3 && ends_in_svc {
            forms.push([name.clone(), domain.clone()].concat());
        }
        if name.len() == 3 {
            forms.push([name.clone(), svc.clone(), domain.clone()].concat());
        }
        if name.len() == 4 && ends_in_svc {
            forms.push([name.clone(), domain.clone()].concat());
        }
        forms
    };
    let asked = split(host);
    let mut all = vec![(asked.clone(), None)];
    all.extend(forms(&asked).into_iter().map(|form| (form, None)));
    for domain in &place.search {
        let domain = split(domain);
        if asked.len() > domain.len() && asked[asked.len() - domain.len()..] == domain[..] {
            let short = asked[..asked.len() - domain.len()].to_vec();
            all.push((short.clone(), Some(short.len())));
            all.extend(forms(&short).into_iter().map(|form| (form, Some(short.len()))));
        }
    }
    let mut once: Vec<(Vec<String>, Option<usize>)> = Vec::new();
    for candidate in all {
        if !once.iter().any(|(name, _)| *name == candidate.0) {
            once.push(candidate);
        }
    }
    once
}

proptest! {
    #[test]
    fn candidates_are_what_the_rules_say_word_for_word(
        labels in prop::collection::vec(prop::sample::select(vec!["a", "web", "svc", "shop", "cluster", "local"]), 1..8),
        domain in prop::sample::select(vec!["cluster.local", "local", "svc"]),
        search in prop::option::of(prop::collection::vec(
            prop::sample::select(vec!["svc", "local", "shop.svc.cluster.local", "cluster.local", "web.a"]), 0..4)),
    ) {
        let own: Option<Vec<String>> = search.map(|list| list.into_iter().map(str::to_owned).collect());
        let place = Place::new("shop", domain, own.as_deref());
        let host = labels.join(".");
        let found: Vec<_> = candidates(&host, &place)
            .into_iter()
            .map(|candidate| (candidate.name.split('.').map(str::to_owned).collect(), candidate.stripped))
            .collect();
        prop_assert_eq!(found, literally(&host, &place));
    }
}
