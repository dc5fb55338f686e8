//! The real thing: code-server in a real browser, through the address that Carrel gives.

use carrel_proto::v1::workspace::State;
use integration_tests::client::Client;
use integration_tests::cluster::{Cluster, Options};
use integration_tests::process::run;
use integration_tests::settings;

/// Opens the editor, makes a file, types into it, and waits until it is saved.
async fn edit(client: &Client, student: &str, file: &str, text: &str) {
    let url = client.access(student).await;
    let script = format!("{}/edit-file.mjs", settings::browser_dir());
    let (file, text) = (file.to_owned(), text.to_owned());
    let said = tokio::task::spawn_blocking(move || run("node", &[&script, &url, &file, &text])).await;
    eprintln!("{}", said.expect("the browser did it"));
}

#[tokio::test]
async fn a_file_typed_in_the_browser_is_there_after_a_stop_and_a_start() {
    let options = Options::new()
        .image(&settings::workspace_image())
        .flag("cpu-millicores", "1000")
        .flag("memory", "1073741824")
        .flag("longest-starting", "120s")
        .flag("stop-grace", "10s");
    let cluster = Cluster::start(options).await;
    let client = cluster.client();
    client.start_and_wait("ada").await;
    edit(&client, "ada", "essay.txt", "typed on day one").await;
    let file = cluster.student_dir("ada").join("essay.txt");
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim_end(), "typed on day one");

    client.stop_and_wait("ada").await;
    assert_eq!(client.start_and_wait("ada").await.generation, 2);
    edit(&client, "ada", "day-two.txt", "typed on day two").await;
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim_end(), "typed on day one");
    assert!(cluster.student_dir("ada").join("day-two.txt").exists());
    assert_eq!(client.get("ada").await.state(), State::Running);
}
