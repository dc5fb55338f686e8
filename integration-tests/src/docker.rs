//! What really runs, as Docker tells it.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummaryStateEnum};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ListNetworksOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
};

/// A Docker daemon.
#[derive(Clone, Debug)]
pub struct Docker {
    host: String,
    api: bollard::Docker,
}

/// A container with Carrel's labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Docker's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether its program runs.
    pub running: bool,
    /// Label `carrel.student`.
    pub student: String,
    /// Label `carrel.generation`.
    pub generation: i64,
    /// All its labels.
    pub labels: HashMap<String, String>,
}

impl Docker {
    /// The daemon at `host`, such as `unix:///var/run/docker.sock`.
    pub fn at(host: &str) -> Self {
        Self::try_at(host).unwrap_or_else(|| panic!("no Docker at {host}"))
    }

    /// The same; `None` when there is no such socket.
    pub fn try_at(host: &str) -> Option<Self> {
        let api = bollard::Docker::connect_with_unix(host, 60, bollard::API_DEFAULT_VERSION).ok()?;
        Some(Self { host: host.to_owned(), api })
    }

    /// Whether the daemon answers.
    pub async fn answers(&self) -> bool {
        self.api.ping().await.is_ok()
    }

    /// Where it is.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The daemon's API, for what only one test needs.
    pub fn api(&self) -> &bollard::Docker {
        &self.api
    }

    /// All containers with this label, running or not; `None` when Docker does not answer.
    pub async fn try_list(&self, label: &str) -> Option<Vec<Found>> {
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&HashMap::from([("label", vec![label])]))
            .build();
        let listed = self.api.list_containers(Some(options)).await.ok()?;
        let found = listed.into_iter().map(|summary| {
            let labels = summary.labels.unwrap_or_default();
            Found {
                id: summary.id.unwrap_or_default(),
                name: summary.names.unwrap_or_default().concat().trim_start_matches('/').to_owned(),
                running: summary.state == Some(ContainerSummaryStateEnum::RUNNING),
                student: labels.get("carrel.student").cloned().unwrap_or_default(),
                generation: labels
                    .get("carrel.generation")
                    .and_then(|text| text.parse().ok())
                    .unwrap_or_default(),
                labels,
            }
        });
        Some(found.collect())
    }

    /// All containers of a cluster.
    pub async fn of_cluster(&self, cluster_id: &str) -> Vec<Found> {
        self.try_list(&format!("carrel.cluster={cluster_id}")).await.expect("Docker answers")
    }

    /// Everything about a container.
    pub async fn inspect(&self, id: &str) -> ContainerInspectResponse {
        self.api.inspect_container(id, None).await.expect("the container exists")
    }

    /// Makes and starts a container; without a network unless it says which, so as not to depend on the machine's default
    /// bridge.
    pub async fn run(&self, name: &str, mut body: ContainerCreateBody) -> String {
        let host = body.host_config.get_or_insert_default();
        host.network_mode.get_or_insert_with(|| "none".into());
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let id = self.api.create_container(Some(options), body).await.expect("created").id;
        self.api.start_container(&id, None).await.expect("started");
        id
    }

    /// Makes and starts a container of this image with these labels, and nothing else of Carrel's.
    pub async fn run_labelled(&self, name: &str, image: &str, labels: HashMap<String, String>) -> String {
        let body =
            ContainerCreateBody { image: Some(image.to_owned()), labels: Some(labels), ..Default::default() };
        self.run(name, body).await
    }

    /// Kills the program of a container.
    pub async fn kill(&self, id: &str) {
        self.api.kill_container(id, None).await.expect("killed");
    }

    /// Stops a container at once and leaves it there.
    pub async fn stop(&self, id: &str) {
        let options = StopContainerOptionsBuilder::new().t(0).build();
        self.api.stop_container(id, Some(options)).await.expect("stopped");
    }

    /// Removes a container, whatever it does.
    pub async fn remove(&self, id: &str) {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        if let Err(error) = self.api.remove_container(id, Some(options)).await {
            eprintln!("the container {id} stays behind: {error}");
        }
    }

    /// Removes whatever a cluster left: its containers and its network.
    pub async fn remove_cluster(&self, cluster_id: &str) {
        let label = format!("carrel.cluster={cluster_id}");
        // Twice: an agent that was killed may have left a create that Docker completes later.
        for _ in 0..2 {
            for container in self.try_list(&label).await.unwrap_or_default() {
                self.remove(&container.id).await;
            }
        }
        let options = ListNetworksOptionsBuilder::new()
            .filters(&HashMap::from([("label", vec![label.as_str()])]))
            .build();
        for network in self.api.list_networks(Some(options)).await.unwrap_or_default() {
            let id = network.id.unwrap_or_default();
            if let Err(error) = self.api.remove_network(&id).await {
                eprintln!("the network {id} stays behind: {error}");
            }
        }
    }
}
