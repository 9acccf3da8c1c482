//! Medians and quartiles.

/// Returns the value below which this share of the values lies, interpolated between two values if necessary.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// Returns the median.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Returns the median and the quartiles of the ratios of pairs, as text.
pub(crate) fn ratio_quartiles(ours: &[f64], others: &[f64]) -> String {
    let ratios: Vec<f64> = ours.iter().zip(others).map(|(ours, other)| ours / other).collect();
    let [low, middle, high] = [0.25, 0.5, 0.75].map(|share| quantile(&ratios, share));
    format!("{middle:.2} ({low:.2}-{high:.2})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_paired_ratios() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.75), 1.75);
        assert!(median(&[]).is_nan());
        // The ratios are equal although the speed differs from pair to pair.
        let (ours, others) = ([1.0, 10.0, 100.0], [2.0, 20.0, 200.0]);
        assert_eq!(ratio_quartiles(&ours, &others), "0.50 (0.50-0.50)");
    }
}
