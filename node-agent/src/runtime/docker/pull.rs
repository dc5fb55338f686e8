//! How far a pull is, from what Docker tells of each layer. Pure.

use std::collections::BTreeMap;

use bollard::models::CreateImageInfo;

/// Of a layer's way, this share is the fetching, in percent; the rest is the unpacking.
const FETCHING: u64 = 80;

#[derive(Debug, Clone, Copy, Default)]
struct Layer {
    /// Bytes; 0 until Docker says how many.
    size: u64,
    /// Percent of this layer's way.
    percent: u64,
}

/// The layers of one pull.
#[derive(Debug, Default)]
pub(super) struct Progress {
    layers: BTreeMap<String, Layer>,
    told: u8,
}

impl Progress {
    /// Takes a line of Docker's; the share of the whole that is done, 0 to 100, which never falls.
    pub(super) fn note(&mut self, line: &CreateImageInfo) -> u8 {
        if let (Some(id), Some(status)) = (&line.id, &line.status) {
            let number = |value: Option<i64>| value.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            let detail = line.progress_detail.as_ref();
            let (current, total) =
                detail.map_or((0, 0), |detail| (number(detail.current), number(detail.total)));
            self.layer(id, status, current, total);
        }
        self.told = self.told.max(self.percent());
        self.told
    }

    fn layer(&mut self, id: &str, status: &str, current: u64, total: u64) {
        let share = |of: u64| (current * of).checked_div(total).unwrap_or(0).min(of);
        let percent = match status {
            "Pulling fs layer" | "Waiting" => 0,
            "Downloading" => share(FETCHING),
            "Verifying Checksum" | "Download complete" => FETCHING,
            "Extracting" => FETCHING + share(100 - FETCHING),
            "Pull complete" => 100,
            // A layer that exists already is no part of the way; and lines about the whole image have its tag for an id.
            _ => return,
        };
        let layer = self.layers.entry(id.to_owned()).or_default();
        layer.size = layer.size.max(total);
        layer.percent = layer.percent.max(percent);
    }

    /// Layers weigh as many bytes as they have; one whose size is not known yet, as much as the others on average.
    fn percent(&self) -> u8 {
        let known: Vec<u64> = self.layers.values().map(|layer| layer.size).filter(|size| *size > 0).collect();
        let average = known.iter().sum::<u64>().checked_div(known.len() as u64).unwrap_or(1).max(1);
        let weight = |layer: &Layer| if layer.size > 0 { layer.size } else { average };
        let all: u64 = self.layers.values().map(weight).sum();
        let done: u64 = self.layers.values().map(|layer| weight(layer).saturating_mul(layer.percent)).sum();
        u8::try_from(done.checked_div(all).unwrap_or(0)).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    fn line(id: &str, status: &str, progress: Option<(i64, i64)>) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.into()),
            status: Some(status.into()),
            progress_detail: progress
                .map(|(current, total)| ProgressDetail { current: Some(current), total: Some(total) }),
            ..CreateImageInfo::default()
        }
    }

    #[test]
    fn layers_weigh_what_they_have_and_the_share_only_rises() {
        let mut progress = Progress::default();
        let lines = [
            (line("v1", "Pulling from carrel/desk", None), 0),
            (line("a", "Pulling fs layer", None), 0),
            (line("b", "Pulling fs layer", None), 0),
            (line("a", "Downloading", Some((50, 100))), 20),
            (line("b", "Downloading", Some((0, 300))), 10),
            (line("a", "Download complete", None), 20),
            (line("b", "Downloading", Some((300, 300))), 80),
            (line("a", "Extracting", Some((100, 100))), 85),
            (line("a", "Pull complete", None), 85),
            (line("b", "Extracting", Some((150, 300))), 92),
            (line("b", "Pull complete", None), 100),
        ];
        let mut before = 0;
        for (line, expected) in lines {
            let told = progress.note(&line);
            assert_eq!(told, expected.max(before), "{line:?}");
            before = told;
        }
    }

    #[test]
    fn a_layer_that_is_here_already_is_no_part_of_the_way() {
        let mut progress = Progress::default();
        for (line, expected) in [
            (line("a", "Already exists", None), 0),
            (line("b", "Pulling fs layer", None), 0),
            (line("b", "Downloading", Some((1, 2))), 40),
            (line("b", "Pull complete", None), 100),
        ] {
            assert_eq!(progress.note(&line), expected);
        }
    }
}
