//! `NodeService`.

use carrel_common::id::StudentId;
use carrel_common::wire::{WireError, timestamp};
use carrel_proto::v1 as pb;
use carrel_proto::v1::node_service_server::NodeService;
use tonic::{Request, Response, Status};

use super::status::bad_field;
use super::{node_convert as convert, parse, to_status};
use crate::app::{App, DrainOrder, Drained, Resolved};

/// The service.
#[derive(Debug, Clone)]
pub struct Nodes {
    app: App,
}

impl Nodes {
    /// Over the use cases.
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

/// Part of what makes a call what it is.
fn only(validate_only: bool) -> &'static str {
    if validate_only { "validate only" } else { "" }
}

fn names(students: Vec<StudentId>) -> Vec<String> {
    students.iter().map(|student| format!("workspaces/{student}")).collect()
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn list_nodes(&self, request: Request<pb::ListNodesRequest>) -> Answer<pb::ListNodesResponse> {
        let request = request.into_inner();
        let size = parse::page_size(request.page_size).map_err(bad_field)?;
        let described = format!("nodes removed={}", request.show_removed);
        let mark = parse::page_mark(&request.page_token, &described).map_err(bad_field)?;
        let after = mark.map(|mark| mark.parse().map_err(|_| WireError::new("page_token", "is not a token")));
        let after = after.transpose().map_err(bad_field)?;
        let (nodes, next) = self.app.nodes(after, request.show_removed, size).await.map_err(to_status)?;
        Ok(Response::new(pb::ListNodesResponse {
            nodes: nodes.into_iter().map(convert::node).collect(),
            next_page_token: next
                .map(|mark| parse::page_token(&mark.to_string(), &described))
                .unwrap_or_default(),
        }))
    }

    async fn get_node(&self, request: Request<pb::GetNodeRequest>) -> Answer<pb::GetNodeResponse> {
        let id = parse::node("name", &request.get_ref().name).map_err(bad_field)?;
        let node = self.app.node(id).await.map_err(to_status)?;
        Ok(Response::new(pb::GetNodeResponse { node: Some(convert::node(node)) }))
    }

    async fn cordon_node(&self, request: Request<pb::CordonNodeRequest>) -> Answer<pb::CordonNodeResponse> {
        let request = request.into_inner();
        let id = parse::node("name", &request.name).map_err(bad_field)?;
        let why = parse::reason(&request.reason).map_err(bad_field)?;
        let content = [request.name.as_str(), why];
        let call = parse::call("CordonNode", &request.request_id, &content).map_err(bad_field)?;
        let node = self.app.cordon(&call, id, why).await.map_err(to_status)?;
        Ok(Response::new(pb::CordonNodeResponse { node: Some(convert::node(node)) }))
    }

    async fn uncordon_node(
        &self,
        request: Request<pb::UncordonNodeRequest>,
    ) -> Answer<pb::UncordonNodeResponse> {
        let request = request.into_inner();
        let id = parse::node("name", &request.name).map_err(bad_field)?;
        let why = parse::reason(&request.reason).map_err(bad_field)?;
        let content = [request.name.as_str(), why];
        let call = parse::call("UncordonNode", &request.request_id, &content).map_err(bad_field)?;
        let node = self.app.uncordon(&call, id, why).await.map_err(to_status)?;
        Ok(Response::new(pb::UncordonNodeResponse { node: Some(convert::node(node)) }))
    }

    async fn drain_node(&self, request: Request<pb::DrainNodeRequest>) -> Answer<pb::DrainNodeResponse> {
        let request = request.into_inner();
        let id = parse::node("name", &request.name).map_err(bad_field)?;
        let order = DrainOrder {
            within: parse::within(request.within.as_ref()).map_err(bad_field)?,
            force: request.force,
            reason: parse::needed_reason(&request.reason).map_err(bad_field)?.to_owned(),
            validate_only: request.validate_only,
        };
        let content = [request.name.as_str(), &format!("{order:?}")];
        let call = parse::call("DrainNode", &request.request_id, &content).map_err(bad_field)?;
        let drained = self.app.drain(&call, id, &order).await.map_err(to_status)?;
        let Drained { node, students, moved, stopped } = drained;
        Ok(Response::new(pb::DrainNodeResponse {
            deadline_time: node.node.drain.as_ref().map(|drain| timestamp(drain.deadline_at)),
            node: Some(convert::node(node)),
            workspaces: names(students),
            moved: names(moved),
            stopped: names(stopped),
        }))
    }

    async fn remove_node(&self, request: Request<pb::RemoveNodeRequest>) -> Answer<pb::RemoveNodeResponse> {
        let request = request.into_inner();
        let id = parse::node("name", &request.name).map_err(bad_field)?;
        let why = parse::needed_reason(&request.reason).map_err(bad_field)?;
        let force = if request.force { "force" } else { "" };
        let content = [request.name.as_str(), why, only(request.validate_only), force];
        let call = parse::call("RemoveNode", &request.request_id, &content).map_err(bad_field)?;
        let removed = match request.force {
            true => self.app.ban_node(&call, id, why, request.validate_only).await,
            false => self.app.remove_node(&call, id, why, request.validate_only).await,
        };
        let node = removed.map_err(to_status)?;
        Ok(Response::new(pb::RemoveNodeResponse { node: Some(convert::node(node)) }))
    }

    async fn confirm_node_dead(
        &self,
        request: Request<pb::ConfirmNodeDeadRequest>,
    ) -> Answer<pb::ConfirmNodeDeadResponse> {
        let request = request.into_inner();
        let id = parse::node("name", &request.name).map_err(bad_field)?;
        let why = parse::needed_reason(&request.reason).map_err(bad_field)?;
        let content = [request.name.as_str(), why, only(request.validate_only)];
        let call = parse::call("ConfirmNodeDead", &request.request_id, &content).map_err(bad_field)?;
        let confirmed = self.app.confirm_dead(&call, id, why, request.validate_only).await;
        let (node, loss) = confirmed.map_err(to_status)?;
        Ok(Response::new(pb::ConfirmNodeDeadResponse {
            node: Some(convert::node(node)),
            moved: names(loss.moved),
            stopped: names(loss.stopped),
        }))
    }

    async fn create_join_token(
        &self,
        request: Request<pb::CreateJoinTokenRequest>,
    ) -> Answer<pb::CreateJoinTokenResponse> {
        let request = request.into_inner();
        let (ttl, node) = parse::join_token(&request).map_err(bad_field)?;
        let content = [ttl.as_millis().to_string(), request.node];
        let content = [content[0].as_str(), content[1].as_str()];
        let call = parse::call("CreateJoinToken", &request.request_id, &content).map_err(bad_field)?;
        let (token, expires_at) = self.app.create_join_token(&call, ttl, node).await.map_err(to_status)?;
        let expire_time = Some(timestamp(expires_at));
        Ok(Response::new(pb::CreateJoinTokenResponse { token: token.to_string(), expire_time }))
    }

    async fn list_orphans(
        &self,
        request: Request<pb::ListOrphansRequest>,
    ) -> Answer<pb::ListOrphansResponse> {
        let request = request.into_inner();
        let size = parse::page_size(request.page_size).map_err(bad_field)?;
        let node = parse::node_name("node", &request.node).map_err(bad_field)?;
        let described = format!("orphans {node:?}");
        let mark = parse::page_mark(&request.page_token, &described).map_err(bad_field)?;
        let after = mark.map(|mark| {
            let place = mark.split_once('/').and_then(|(node, id)| Some((node.parse().ok()?, id.to_owned())));
            place.ok_or_else(|| bad_field(WireError::new("page_token", "is not a token")))
        });
        let found = self.app.orphans(node, after.transpose()?, size).await;
        let (orphans, next) = found.map_err(to_status)?;
        Ok(Response::new(pb::ListOrphansResponse {
            orphans: orphans.into_iter().map(convert::orphan).collect(),
            next_page_token: next
                .map(|(node, id)| parse::page_token(&format!("{node}/{id}"), &described))
                .unwrap_or_default(),
        }))
    }

    async fn resolve_orphan(
        &self,
        request: Request<pb::ResolveOrphanRequest>,
    ) -> Answer<pb::ResolveOrphanResponse> {
        let request = request.into_inner();
        let node = parse::node("node", &request.node).map_err(bad_field)?;
        let resolution = parse::resolution(request.resolution).map_err(bad_field)?;
        let why = parse::needed_reason(&request.reason).map_err(bad_field)?;
        let what = format!("{resolution:?}");
        let content = [&request.node, &request.container_id, &what, why, only(request.validate_only)];
        let call = parse::call("ResolveOrphan", &request.request_id, &content).map_err(bad_field)?;
        let which = (node, parse::text("container_id", &request.container_id).map_err(bad_field)?);
        let resolved = self.app.resolve_orphan(&call, which, resolution, why, request.validate_only).await;
        let Resolved { orphan, workspace } = resolved.map_err(to_status)?;
        let shown = self.app.view(workspace.into_iter().collect()).await.map_err(to_status)?.pop();
        Ok(Response::new(pb::ResolveOrphanResponse {
            orphan: Some(convert::orphan(orphan)),
            workspace: shown.map(super::convert::workspace),
        }))
    }
}
