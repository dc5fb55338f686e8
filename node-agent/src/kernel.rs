//! Limits of the kernel on what all desks of a host use together: they have one uid, and the kernel counts by uid, or for the whole host.
//! Where one is low, a single desk uses it up for all others.

use std::fs;

/// What they are raised to where Carrel is installed, in the form of sysctl.d.
const RAISED: &str = include_str!("../../deploy/sysctl.d/60-carrel.conf");

/// Says in the log which of them are lower on this host. Blocking, from `/proc` only.
pub fn tell_low_limits() {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok();
    let limits = lower(RAISED, read);
    if !limits.is_empty() {
        tracing::warn!(
            ?limits,
            "one desk can use up for all others what these limits of the kernel leave to them together; deploy/install raises them, in /etc/sysctl.d/60-carrel.conf"
        );
    }
}

/// Those of `raised` that are lower by what `read` says, with their values. One that a kernel does not have is not low.
fn lower(raised: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let settings = raised.lines().filter(|line| !line.starts_with('#'));
    let named = settings.filter_map(|line| line.split_once('='));
    let low = named.filter_map(|(name, wanted)| {
        let name = name.trim();
        let found = read(name)?;
        (limit(&found)? < limit(wanted)?).then(|| format!("{name} = {}", found.trim()))
    });
    low.collect()
}

/// 0 is no limit on the pages of pipes; nobody sets it for the others.
fn limit(text: &str) -> Option<u64> {
    let number = text.trim().parse().ok()?;
    Some(if number == 0 { u64::MAX } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(name: &str) -> Option<String> {
        let value = match name {
            "fs.inotify.max_user_instances" => "128\n",
            "fs.inotify.max_user_watches" => "192536\n",
            "fs.epoll.max_user_watches" => "5491489\n",
            "fs.pipe-user-pages-soft" => "16384\n",
            "fs.aio-max-nr" => "65536\n",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn a_kernel_that_nobody_has_told_anything_is_low_in_all_that_an_installation_raises() {
        let expected = [
            "fs.inotify.max_user_instances = 128",
            "fs.inotify.max_user_watches = 192536",
            "fs.epoll.max_user_watches = 5491489",
            "fs.pipe-user-pages-soft = 16384",
            "fs.aio-max-nr = 65536",
        ];
        assert_eq!(lower(RAISED, fresh), expected);
    }

    #[test]
    fn what_is_raised_so_far_or_farther_or_not_there_is_not_low() {
        let raised = "# a.b = 9\n\na.b = 100\nc-d = 0\n";
        let with = |first: &'static str, second: &'static str| {
            lower(raised, move |name| match name {
                "a.b" => Some(first.to_owned()),
                "c-d" => Some(second.to_owned()),
                other => panic!("{other} is no setting"),
            })
        };
        assert_eq!(with("100\n", "0\n"), Vec::<String>::new());
        assert_eq!(with("101\n", "0\n"), Vec::<String>::new());
        assert_eq!(with("99\n", "0\n"), ["a.b = 99"]);
        assert_eq!(with("99\n", "8\n"), ["a.b = 99", "c-d = 8"]);
        assert_eq!(lower(raised, |_| None), Vec::<String>::new());
    }
}
