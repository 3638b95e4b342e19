//! Elementary functions with the same bits on every machine: only additions, multiplications, divisions and bit operations.
//!
//! The f32 functions are free of branches, so that loops over them become vector code.

/// e^x, error at most 2 ulp; 0 for x below -87.3, where results leave the normal range, whose handling would cost more than all
/// the rest.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    const LN2_HI: f32 = 0.693_145_75;
    const LN2_LO: f32 = 1.428_606_8e-6;
    const LOWEST: f32 = -87.3;
    let vanishes = x < LOWEST;
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if vanishes { LOWEST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    // The high part of ln 2 has 9 trailing zero bits: n * LN2_HI is exact.
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = (p * (r * r) + r) + 1.0;
    let n = (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32);
    // Two factors, since 2^n itself may be out of range.
    let half = n >> 1;
    let y = y * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    if vanishes { 0.0 } else { y }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// tanh, absolute error at most 2e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // Beyond 10 the result is 1 to the last bit.
    let x = if x > 10.0 { 10.0 } else { x };
    let x = if x < -10.0 { -10.0 } else { x };
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The error function, absolute error at most 4e-7: a rational function of x on [-4, 4], and its end values beyond.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let t = x * x;
    let p = -2.726_142_4e-10;
    let p = p * t + 2.770_681_4e-8;
    let p = p * t - 2.101_024e-6;
    let p = p * t - 5.692_506_4e-5;
    let p = p * t - 7.349_906_3e-4;
    let p = p * t - 2.954_6e-3;
    let p = p * t - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * t - 2.133_740_5e-4;
    let q = q * t - 1.682_827e-3;
    let q = q * t - 7.373_329e-3;
    let q = q * t - 1.426_473_9e-2;
    x * p / q
}

/// e^x in f64, relative error below 1e-15.
pub fn exp_f64(x: f64) -> f64 {
    const LN2_HI: f64 = 6.931_471_803_691_238e-1;
    const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;
    let x = x.clamp(-745.5, 710.0);
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let mut y = 1.0;
    for k in (1..=13u32).rev() {
        y = 1.0 + y * r / f64::from(k);
    }
    if n.is_nan() {
        return n;
    }
    let half = (n as i64) >> 1;
    let power = |n: i64| f64::from_bits(((n + 1023) as u64) << 52);
    y * power(half) * power(n as i64 - half)
}

/// Natural logarithm in f64, relative error below 1e-15 away from 1; NaN below 0, minus infinity at 0.
pub fn ln_f64(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x == f64::INFINITY {
        return x;
    }
    let (x, bias) = if x < f64::MIN_POSITIVE { (x * 18_014_398_509_481_984.0, 1077) } else { (x, 1023) };
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - bias;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    // ln m = 2 atanh(s); s <= 0.172, so 12 terms reach the last bit.
    let s = (m - 1.0) / (m + 1.0);
    let t = s * s;
    let mut sum = 0.0;
    for k in (0..12).rev() {
        sum = sum * t + 1.0 / f64::from(2 * k + 1);
    }
    exponent as f64 * 6.931_471_803_691_238e-1 + (2.0 * s * sum + exponent as f64 * 1.908_214_929_270_587_7e-10)
}

/// x^y for positive x in f64, relative error below 1e-13 for |y ln x| up to 100.
pub fn pow_f64(x: f64, y: f64) -> f64 {
    exp_f64(y * ln_f64(x))
}

/// (sin x, cos x) in f64, absolute error below 1e-15 for |x| up to 1.6e6 and below 1e-9 up to 1e8.
pub fn sin_cos_f64(x: f64) -> (f64, f64) {
    const PIO2_HI: f64 = 1.570_796_326_734_125_6;
    const PIO2_LO: f64 = 6.077_100_506_506_192e-11;
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = (x - n * PIO2_HI) - n * PIO2_LO;
    let t = r * r;
    let (mut sin, mut cos) = (1.0, 1.0);
    for k in (1..=9u32).rev() {
        sin = 1.0 - sin * t / f64::from(2 * k * (2 * k + 1));
        cos = 1.0 - cos * t / f64::from(2 * k * (2 * k - 1));
    }
    sin *= r;
    match (n as i64) & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance of an f32 from an exact value, in units of the exact value's last place.
    fn ulps(got: f32, exact: f64) -> f64 {
        let exponent = (exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor() as i32 - 23).max(-149);
        (f64::from(got) - exact).abs() / f64::powi(2.0, exponent)
    }

    fn grid(from: f32, to: f32) -> impl Iterator<Item = f32> {
        (0..200_000).map(move |i| from + (to - from) * (i as f32 / 200_000.0))
    }

    #[test]
    fn exp_is_within_two_ulp_over_its_whole_range() {
        for x in grid(-87.3, 88.72).chain(grid(-1.0, 1.0)) {
            assert!(ulps(exp(x), f64::from(x).exp()) <= 2.0, "{x} {}", exp(x));
        }
        assert_eq!([exp(0.0), exp(f32::NEG_INFINITY), exp(-1e30), exp(f32::INFINITY)], [1.0, 0.0, 0.0, f32::INFINITY]);
        assert_eq!([exp(88.8), exp(-87.31)], [f32::INFINITY, 0.0]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_erf_are_within_their_stated_errors() {
        // erf by its series, which converges fast on this range.
        let erf_exact = |x: f64| {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        };
        for x in grid(-5.0, 5.0) {
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() <= 2e-7, "{x}");
            // The series loses its digits beyond 4, where 1 - |erf| is below 2e-8.
            let want = if x.abs() < 4.0 { erf_exact(f64::from(x)) } else { f64::from(x.signum()) };
            assert!((f64::from(erf(x)) - want).abs() <= 4e-7, "{x} {}", erf(x));
        }
        assert_eq!([tanh(1e30), tanh(-1e30)], [1.0, -1.0]);
    }

    #[test]
    fn f64_functions_are_within_their_stated_errors() {
        let near = |got: f64, want: f64| (got - want).abs() <= 1e-15 * want.abs().max(f64::MIN_POSITIVE);
        for i in 1..100_000 {
            let x = f64::from(i) * 0.0071;
            assert!(near(exp_f64(x - 355.0), (x - 355.0).exp()), "{x}");
            assert!((ln_f64(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1.0), "{x}");
            let angle = f64::from(i) * 15.9;
            let (sin, cos) = sin_cos_f64(angle);
            assert!((sin - angle.sin()).abs() <= 1e-15 && (cos - angle.cos()).abs() <= 1e-15, "{angle}");
            assert!((sin_cos_f64(-x).0 + x.sin()).abs() <= 1e-15);
        }
        assert!(((pow_f64(500_000.0, 0.984_375) / 500_000f64.powf(0.984_375)) - 1.0).abs() < 1e-13);
        assert_eq!([exp_f64(-800.0), exp_f64(800.0), ln_f64(0.0)], [0.0, f64::INFINITY, f64::NEG_INFINITY]);
        assert!(ln_f64(-1.0).is_nan() && exp_f64(f64::NAN).is_nan() && near(ln_f64(5e-324), 5e-324f64.ln()));
        assert_eq!(exp_f64(0.0), 1.0);
    }
}
