//! Measured values of one binary, by series, and what is read off them.

use std::collections::BTreeMap;

#[derive(Default)]
pub struct Samples {
    series: BTreeMap<String, Vec<f64>>,
    /// What went wrong, by section.
    pub failures: Vec<String>,
}

/// How a series becomes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Median,
    P99,
    Sum,
}

impl Samples {
    pub fn add(&mut self, series: impl Into<String>, value: f64) {
        self.series.entry(series.into()).or_default().push(value);
    }

    pub fn count(&self, series: &str) -> usize {
        self.series.get(series).map_or(0, Vec::len)
    }

    /// `None` for a series without values.
    pub fn read(&self, series: &str, reading: Reading) -> Option<f64> {
        let mut values = self.series.get(series)?.clone();
        values.sort_by(f64::total_cmp);
        match reading {
            Reading::Median => median(&values),
            Reading::P99 => percentile(&values, 99.0),
            Reading::Sum => Some(values.iter().sum()),
        }
    }
}

/// Middle of sorted values; the mean of the two middle ones of an even number.
fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The smallest of sorted values that is not below `percent` of them.
fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}
