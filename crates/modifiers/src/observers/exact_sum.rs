//! Sums that come out the same in any order.

/// A sum of numbers of 0 and above, kept as a whole number of a fixed, small unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ExactSum {
    units: i128,
    /// Exponent of two of the unit.
    exponent: i32,
    has_nan: bool,
}

impl ExactSum {
    /// The sum of nothing, for up to 2^27 numbers of at most `bound`; beyond that it stays at its largest value.
    pub(super) fn below(bound: f64) -> Self {
        let bounded = if bound > 1e-60 { bound.min(1e60) } else { 1e-60 };
        let exponent = (bounded.to_bits() >> 52) as i32 - 1023 + 1;
        Self { units: 0, exponent: exponent - 99, has_nan: false }
    }

    /// Adds a number; what is below a unit is cut off.
    pub(super) fn add(&mut self, value: f64) {
        self.has_nan |= value.is_nan();
        // A conversion keeps within the range, which leaves infinity at the largest value.
        self.units = self.units.saturating_add((value * power_of_two(-self.exponent)) as i128);
    }

    /// Adds what another sum of the same bound holds.
    pub(super) fn merge(&mut self, other: &Self) {
        self.has_nan |= other.has_nan;
        self.units = self.units.saturating_add(other.units);
    }

    /// The sum, infinite where it ran over.
    pub(super) fn value(&self) -> f64 {
        match self.units {
            _ if self.has_nan => f64::NAN,
            i128::MAX => f64::INFINITY,
            units => units as f64 * power_of_two(self.exponent),
        }
    }
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_grouping_make_no_difference() {
        let values: Vec<f64> = (0..1000).map(|i| 1.7_f64.powi(i % 40) * 1e-7).collect();
        let bound = 1e3;
        let sum = |values: &mut dyn Iterator<Item = &f64>| {
            let mut sum = ExactSum::below(bound);
            values.for_each(|it| sum.add(*it));
            sum
        };
        let all = sum(&mut values.iter());
        assert_eq!(sum(&mut values.iter().rev()), all);
        let mut parts = sum(&mut values[..333].iter());
        parts.merge(&sum(&mut values[333..].iter()));
        assert_eq!(parts, all);
        let plain: f64 = values.iter().sum();
        assert!((all.value() / plain - 1.0).abs() < 1e-14);
    }

    #[test]
    fn infinity_and_nan_stay() {
        let mut sum = ExactSum::below(0.0);
        assert_eq!(sum.value(), 0.0);
        sum.add(f64::INFINITY);
        assert_eq!(sum.value(), f64::INFINITY);
        sum.add(f64::NAN);
        assert!(sum.value().is_nan());
    }
}
