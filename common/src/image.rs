//! References of images, in the one form that can be compared.

/// A reference as Docker lists it: without the name of Docker's own registry, with a tag or a digest. What a policy names and what
/// a host lists are the same image when this is the same.
pub fn canonical(reference: &str) -> String {
    let hub = ["docker.io/", "index.docker.io/"];
    let name = hub.iter().find_map(|registry| reference.strip_prefix(registry)).unwrap_or(reference);
    let name = name.strip_prefix("library/").unwrap_or(name);
    // The tag is what follows a colon after the last slash; a colon before it is a registry's port.
    let tag_of = |name: &str| {
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        name[last..].find(':').map(|colon| last + colon)
    };
    match (name.split_once('@'), tag_of(name)) {
        // Docker keeps what was pulled by digest under the digest alone.
        (Some((named, digest)), _) => {
            let named = tag_of(named).map_or(named, |colon| &named[..colon]);
            format!("{named}@{digest}")
        }
        (None, Some(_)) => name.to_owned(),
        (None, None) => format!("{name}:latest"),
    }
}

/// Every way to write an image, the canonical one first, so that one can be asked how it begins: the beginning of a name does not
/// say how it goes on, and so has no canonical form.
pub fn spellings(reference: &str) -> Vec<String> {
    let name = canonical(reference);
    let in_hub = match name.split_once('/') {
        Some((first, _)) => !first.contains(['.', ':']) && first != "localhost",
        None => true,
    };
    let mut all = vec![name.clone()];
    if in_hub {
        let official = (!name.contains('/')).then(|| format!("library/{name}"));
        all.extend(official);
        let within = |registry: &str| all.iter().map(|name| format!("{registry}/{name}")).collect::<Vec<_>>();
        let registries = ["docker.io", "index.docker.io"].map(within).concat();
        all.extend(registries);
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_one_image_are_the_same_in_the_canonical_form() {
        for (given, canon) in [
            ("carrel/tiny:test", "carrel/tiny:test"),
            ("carrel/tiny", "carrel/tiny:latest"),
            ("docker.io/library/debian", "debian:latest"),
            ("library/debian:12", "debian:12"),
            ("localhost:5000/desk", "localhost:5000/desk:latest"),
            ("localhost:5000/desk:v1", "localhost:5000/desk:v1"),
            ("desk:v1@sha256:ab", "desk@sha256:ab"),
            ("r:5000/desk@sha256:ab", "r:5000/desk@sha256:ab"),
        ] {
            assert_eq!(canonical(given), canon, "{given}");
        }
    }

    #[test]
    fn an_image_can_be_written_in_all_the_ways_that_mean_it_and_in_no_other() {
        let school = ["school/cs:2", "docker.io/school/cs:2", "index.docker.io/school/cs:2"];
        assert_eq!(spellings("docker.io/school/cs:2"), school);
        let official = [
            "debian:12",
            "library/debian:12",
            "docker.io/debian:12",
            "docker.io/library/debian:12",
            "index.docker.io/debian:12",
            "index.docker.io/library/debian:12",
        ];
        assert_eq!(spellings("library/debian:12"), official);
        for elsewhere in ["ghcr.io/school/cs:2", "localhost/desk:1", "r:5000/desk@sha256:ab"] {
            assert_eq!(spellings(elsewhere), [elsewhere]);
        }
    }

    proptest! {
        #[test]
        fn all_spellings_of_an_image_are_one_image(text in "[a-z0-9./:-]{1,30}") {
            let own = canonical(&text);
            // Twice the registry's prefix is no reference.
            prop_assume!(canonical(&own) == own);
            for spelling in spellings(&text) {
                prop_assert_eq!(canonical(&spelling), own.clone(), "{}", spelling);
            }
        }

        #[test]
        fn the_canonical_form_is_its_own(text in "[a-z0-9./:@-]{0,30}") {
            let once = canonical(&text);
            // Twice the registry's prefix is no reference.
            prop_assume!(!once.starts_with("docker.io/") && !once.starts_with("index.docker.io/") && !once.starts_with("library/"));
            prop_assert_eq!(canonical(&once), once);
        }
    }
}
