//! Scales, ticks and labels of a drawing.

/// A way from values to pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    values: (f64, f64),
    pixels: (f64, f64),
    logarithmic: bool,
}

impl Scale {
    /// From 0 to `most`.
    pub(super) fn linear(most: f64, pixels: (f64, f64)) -> Self {
        let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
        Self { values: (0.0, most), pixels, logarithmic: false }
    }

    /// From `least` to `most`, both above 0, with some air at both ends.
    pub(super) fn logarithmic(least: f64, most: f64, pixels: (f64, f64)) -> Self {
        let sound = |value: f64| value.is_finite() && value > 0.0;
        let (least, most) = if sound(least) && sound(most) { (least, most.max(least)) } else { (1.0, 10.0) };
        Self { values: (least / 1.12, most * 1.12), pixels, logarithmic: true }
    }

    /// Where a value is. Values outside end at the edge.
    pub(super) fn pixel(&self, value: f64) -> f64 {
        let (from, to) = self.values;
        let value = if value.is_finite() { value.clamp(from, to) } else { from };
        let share = match self.logarithmic {
            true => (value / from).ln() / (to / from).ln(),
            false => (value - from) / (to - from),
        };
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// Round values across the scale, about `wanted` of them.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<f64> {
        let (from, to) = self.values;
        if !self.logarithmic {
            let rough = to / wanted.max(1) as f64;
            let decade = 10f64.powf(rough.log10().floor());
            let step =
                [1.0, 2.0, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| *step >= rough);
            let step = step.unwrap_or(rough);
            return (0..=2 * wanted)
                .map(|index| index as f64 * step)
                .take_while(|tick| *tick <= to)
                .collect();
        }
        let decades = (from.log10().floor() as i32)..=(to.log10().ceil() as i32);
        let of = |steps: &[f64]| -> Vec<f64> {
            let ticks =
                decades.clone().flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            ticks.filter(|tick| (from..=to).contains(tick)).collect()
        };
        let candidates =
            [of(&[1.0]), of(&[1.0, 3.0]), of(&[1.0, 2.0, 5.0]), of(&[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])];
        candidates
            .into_iter()
            .max_by_key(|ticks| if ticks.len() > wanted { 0 } else { ticks.len() })
            .unwrap_or_default()
    }
}

/// Moves labels that want to be at these heights apart by at least `gap`, keeping their order and, if they fit, within
/// `range`.
pub(super) fn spread_out(wanted: &[f64], gap: f64, range: (f64, f64)) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut placed = wanted.to_vec();
    let mut least = range.0;
    for index in &order {
        placed[*index] = placed[*index].max(least);
        least = placed[*index] + gap;
    }
    let mut most = range.1;
    for index in order.iter().rev() {
        placed[*index] = placed[*index].min(most);
        most = placed[*index] - gap;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_keep_their_ends() {
        let linear = Scale::linear(10.0, (100.0, 200.0));
        assert_eq!(
            [0.0, 5.0, 10.0, 99.0, f64::NAN].map(|v| linear.pixel(v)),
            [100.0, 150.0, 200.0, 200.0, 100.0]
        );
        let log = Scale::logarithmic(10.0, 1000.0, (200.0, 0.0));
        assert!((log.pixel(100.0) - 100.0).abs() < 1e-9);
        assert!(log.pixel(10.0) < 200.0 && log.pixel(1000.0) > 0.0);
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(Scale::linear(10.0, (0.0, 1.0)).ticks(5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(Scale::linear(0.7, (0.0, 1.0)).ticks(4).len(), 4);
        assert_eq!(Scale::logarithmic(10.0, 1000.0, (0.0, 1.0)).ticks(7).len(), 7);
        assert_eq!(Scale::logarithmic(100.0, 150.0, (0.0, 1.0)).ticks(7), [100.0, 150.0]);
        for scale in [Scale::linear(f64::NAN, (0.0, 1.0)), Scale::logarithmic(0.0, f64::NAN, (0.0, 1.0))] {
            assert!(scale.ticks(5).len() >= 2, "{scale:?}");
        }
        let wide = Scale::logarithmic(1.0, 1e7, (0.0, 1.0)).ticks(8);
        assert!((3..=8).contains(&wide.len()), "{wide:?}");
    }

    #[test]
    fn labels_do_not_overlap() {
        assert_eq!(spread_out(&[50.0, 10.0, 52.0], 10.0, (0.0, 100.0)), [50.0, 10.0, 60.0]);
        assert_eq!(spread_out(&[99.0, 98.0, 100.0], 10.0, (0.0, 100.0)), [90.0, 80.0, 100.0]);
        assert_eq!(spread_out(&[], 10.0, (0.0, 100.0)), [0.0; 0]);
    }
}
