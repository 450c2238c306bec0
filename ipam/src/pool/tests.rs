use super::*;
use proptest::prelude::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn pool(cidr: &str, block_size: u8) -> Pool {
    Pool::new("p", net(cidr), Some(block_size)).unwrap()
}

#[test]
fn blocks_are_26_and_122_unless_told() {
    assert_eq!(
        Pool::new("p", net("10.244.0.0/16"), None).unwrap().block_size(),
        26
    );
    assert_eq!(Pool::new("p", net("fd00::/48"), None).unwrap().block_size(), 122);
}

#[test]
fn a_wrong_block_size_is_named_with_what_is_allowed() {
    let error = Pool::new("blue", net("10.0.0.0/8"), Some(19)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pool blue: blockSize is 19, for IPv4 it must be 20 to 32"
    );
    assert!(Pool::new("p", net("10.0.0.0/8"), Some(33)).is_err());
    assert!(Pool::new("p", net("fd00::/64"), Some(115)).is_err());
    assert!(matches!(
        Pool::new("p", net("10.0.0.0/28"), Some(26)),
        Err(PoolError::BlockLargerThanPool { block_size: 26, .. })
    ));
    assert!(matches!(
        Pool::new("p", net("::/0"), Some(128)),
        Err(PoolError::TooManyBlocks { .. })
    ));
    assert_eq!(pool("::/0", 127).block_count(), 1 << 127);
}

#[test]
fn blocks_are_counted_and_found() {
    let p = pool("10.0.0.0/8", 26);
    assert_eq!(p.block_count(), 262_144);
    assert_eq!(p.block(1), Some(net("10.0.0.64/26")));
    assert_eq!(p.block(262_143), Some(net("10.255.255.192/26")));
    assert_eq!(p.block(262_144), None);
    assert_eq!(
        p.block_of("10.1.2.200".parse().unwrap()),
        Some(net("10.1.2.192/26"))
    );
    assert_eq!(p.block_of("11.0.0.0".parse().unwrap()), None);
    assert!(p.has_block(net("10.0.0.64/26")));
    assert!(!p.has_block(net("10.0.0.64/27")) && !p.has_block(net("11.0.0.0/26")));
    let six = pool("fd00:1::/32", 122);
    assert_eq!(
        six.block(six.block_count() - 1),
        Some(net("fd00:1:ffff:ffff:ffff:ffff:ffff:ffc0/122"))
    );
}

#[test]
fn the_hash_is_fnv_1a() {
    // Test vectors of draft-eastlake-fnv-17, Appendix C.
    for (text, hash) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
        assert_eq!(fnv1a_32(text.as_bytes()), hash, "{text}");
    }
}

#[test]
fn a_huge_taken_range_is_passed_in_one_stride() {
    let p = pool("fd00::/16", 128);
    let taken = Ranges::from_iter([net("fd00::/17")]);
    let found = p.free_block("n", &taken, &Ranges::default()).unwrap();
    assert!(net("fd00:8000::/17").contains(&found), "{found}");
    assert_eq!(
        p.free_block("n", &Ranges::from_iter([net("fd00::/15")]), &Ranges::default()),
        None
    );
}

#[test]
fn a_block_is_reserved_only_as_a_whole() {
    let p = pool("fd00::/16", 126);
    let reserved = Ranges::from_iter([net("fd00::/17"), net("fd00:8000::/127")]);
    let found = p.free_block("n", &Ranges::default(), &reserved).unwrap();
    assert!(net("fd00:8000::/17").contains(&found), "{found}");
    let all_but_one = Ranges::from_iter([
        net("fd00::/17"),
        net("fd00:8000::/127"),
        net("fd00:8000::4/126"),
        net("fd00:8000::8/125"),
        net("fd00:8000::10/124"),
    ]);
    assert_eq!(
        pool("fd00:8000::/123", 126).free_block("n", &Ranges::default(), &all_but_one),
        Some(net("fd00:8000::/126"))
    );
}

#[test]
fn ranks_count_from_the_nodes_start() {
    let p = pool("10.0.0.0/26", 28);
    let mut taken = Vec::new();
    for rank in 0..4 {
        let block = p
            .free_block("node", &taken.iter().copied().collect(), &Ranges::default())
            .unwrap();
        assert_eq!(p.rank("node", block), Some(rank));
        taken.push(block);
    }
    assert_eq!(p.rank("node", net("10.1.0.0/28")), None);
}

#[test]
fn a_pool_that_overlaps_one_before_it_gives_nothing() {
    let pools = Pools::new([
        Ok(pool("10.0.0.0/16", 26)),
        Pool::new("q", net("10.0.128.0/17"), None),
        Pool::new("r", net("10.1.0.0/16"), None),
        Pool::new("s", net("10.2.0.0/16"), Some(10)),
    ]);
    let refusal = |name: &str| {
        pools
            .iter()
            .find(|p| p.name() == name)
            .unwrap()
            .refusal(Use::Workload)
    };
    assert_eq!(
        refusal("q").unwrap().to_string(),
        "its cidr 10.0.128.0/17 overlaps 10.0.0.0/16 of pool p; delete one of the two"
    );
    assert_eq!((refusal("p"), refusal("r")), (None, None));
    assert_eq!(pools.wrong().len(), 1);
    assert_eq!(
        pools.of_address("10.0.129.1".parse().unwrap()).unwrap().name(),
        "p"
    );
}

#[test]
fn a_refusal_says_why() {
    let p = pool("10.0.0.0/16", 26).allowing([Use::Workload]);
    assert_eq!(p.refusal(Use::Workload), None);
    assert_eq!(
        p.refusal(Use::Tunnel).unwrap().to_string(),
        "allowedUses does not have Tunnel"
    );
    let p = p.excluding(Some(Excluded::Disabled));
    assert_eq!(p.refusal(Use::Workload).unwrap().to_string(), "disabled");
}

proptest! {
    #[test]
    fn a_walk_takes_every_block_once_and_in_order(node in "[a-z]{1,8}", length in 24_u8..=28) {
        let p = pool(&format!("10.0.0.0/{length}"), 28);
        let mut taken = Vec::new();
        while let Some(block) = p.free_block(&node, &taken.iter().copied().collect(), &Ranges::default()) {
            prop_assert!(p.has_block(block) && !taken.contains(&block));
            taken.push(block);
        }
        prop_assert_eq!(taken.len() as u128, p.block_count());
        let falls = taken.windows(2).filter(|pair| pair[1] < pair[0]).count();
        prop_assert!(falls <= 1, "the walk wraps once: {:?}", taken);
    }

    #[test]
    fn the_first_free_block_is_that_of_a_plain_search(
        node in "[a-z]{1,8}",
        taken in prop::collection::vec((0_u32..256, 24_u8..=32), 0..12),
    ) {
        let p = pool("10.0.0.0/24", 28);
        let taken: Vec<IpNet> = taken
            .iter()
            .map(|(last, length)| net(&format!("10.0.0.{last}/{length}")).trunc())
            .collect();
        let start = u128::from(fnv1a_32(node.as_bytes())) % 16;
        let plain = (0..16)
            .filter_map(|i| p.block((start + i) % 16))
            .find(|b| !taken.iter().any(|t| t.contains(b) || b.contains(t)));
        prop_assert_eq!(p.free_block(&node, &taken.into_iter().collect(), &Ranges::default()), plain);
    }
}
