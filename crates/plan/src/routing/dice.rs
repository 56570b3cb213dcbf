//! Several independent draws from the one random number a decision is given.
//!
//! A request with the same head and the same number is decided the same way again, and what one draw says
//! (a delay) tells nothing about the next (the weights).

use model::url_map::Percentage;

/// A number by which no fault of less than 99 percent is injected: what explains an ordinary request.
pub const ORDINARY_DICE: u64 = 140_068;

/// What a draw is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Draw {
    /// Which weighted backend service.
    Weight = 1,
    /// Whether a delay is injected.
    Delay = 2,
    /// Whether an abort is injected.
    Abort = 3,
    /// Which revision of the service.
    Revision = 4,
}

/// The random number of one draw (SplitMix64, which mixes neighbouring inputs well).
pub(crate) fn draw(dice: u64, what: Draw) -> u64 {
    let mut mixed = dice.wrapping_add((what as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A number below `bound`, evenly.
pub(crate) fn below(random: u64, bound: u32) -> u32 {
    // The upper half of the product of two numbers below 2^64 and 2^32 is below the second.
    u32::try_from((u128::from(random) * u128::from(bound)) >> 64).unwrap_or(0)
}

/// Whether a share of requests includes this one.
pub(crate) fn hits(share: Percentage, dice: u64, what: Draw) -> bool {
    share.millionths > 0 && below(draw(dice, what), Percentage::ALL.millionths) < share.millionths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_dice_inject_no_fault_that_spares_anybody() {
        let most = Percentage { millionths: 990_000 };
        assert!(!hits(most, ORDINARY_DICE, Draw::Delay));
        assert!(!hits(most, ORDINARY_DICE, Draw::Abort));
        assert!(hits(Percentage::ALL, ORDINARY_DICE, Draw::Abort));
    }

    #[test]
    fn a_share_is_hit_as_often_as_it_says() {
        let quarter = Percentage { millionths: 250_000 };
        let hit = (0..100_000).filter(|dice| hits(quarter, *dice, Draw::Abort)).count();
        assert!((24_000..26_000).contains(&hit), "{hit}");
        assert!((0..1000).all(|dice| hits(Percentage::ALL, dice, Draw::Delay)));
        assert!((0..1000).all(|dice| !hits(Percentage::default(), dice, Draw::Delay)));
    }
}
