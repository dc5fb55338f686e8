//! `PolicyService`.

use carrel_common::wire::WireError;
use carrel_proto::v1 as pb;
use carrel_proto::v1::policy_service_server::PolicyService;
use tonic::{Request, Response, Status};

use super::status::bad_field;
use super::{parse, policy_convert as convert, to_status};
use crate::app::App;

/// The service.
#[derive(Debug, Clone)]
pub struct Policies {
    app: App,
}

impl Policies {
    /// Over the use cases.
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

type Answer<T> = Result<Response<T>, Status>;

/// What a page token of the list of policies is made for.
const LIST: &str = "policies";

#[tonic::async_trait]
impl PolicyService for Policies {
    async fn set_policy(&self, request: Request<pb::SetPolicyRequest>) -> Answer<pb::SetPolicyResponse> {
        let pb::SetPolicyRequest { policy, request_id } = request.into_inner();
        let mut message = policy.ok_or_else(|| bad_field(WireError::new("policy", "must be set")))?;
        let scope = convert::scope("policy.name", &message.name).map_err(bad_field)?;
        let etag = std::mem::take(&mut message.etag);
        let policy = convert::policy(message).map_err(bad_field)?;
        let content = [scope.to_string(), etag.clone(), format!("{policy:?}")];
        let content = content.each_ref().map(String::as_str);
        let call = parse::call("SetPolicy", &request_id, &content).map_err(bad_field)?;
        let kept = self.app.set_policy(&call, &scope, &etag, &policy).await.map_err(to_status)?;
        Ok(Response::new(pb::SetPolicyResponse { policy: Some(convert::stored(kept)) }))
    }

    async fn get_policy(&self, request: Request<pb::GetPolicyRequest>) -> Answer<pb::GetPolicyResponse> {
        let scope = convert::scope("name", &request.get_ref().name).map_err(bad_field)?;
        let kept = self.app.policy(&scope).await.map_err(to_status)?;
        Ok(Response::new(pb::GetPolicyResponse { policy: Some(convert::stored(kept)) }))
    }

    async fn list_policies(
        &self,
        request: Request<pb::ListPoliciesRequest>,
    ) -> Answer<pb::ListPoliciesResponse> {
        let request = request.into_inner();
        let size = parse::page_size(request.page_size).map_err(bad_field)?;
        let after = parse::page_mark(&request.page_token, LIST).map_err(bad_field)?.unwrap_or_default();
        let (policies, next) = self.app.policies(after, size).await.map_err(to_status)?;
        Ok(Response::new(pb::ListPoliciesResponse {
            policies: policies.into_iter().map(convert::stored).collect(),
            next_page_token: next.map(|mark| parse::page_token(&mark, LIST)).unwrap_or_default(),
        }))
    }

    async fn delete_policy(
        &self,
        request: Request<pb::DeletePolicyRequest>,
    ) -> Answer<pb::DeletePolicyResponse> {
        let request = request.into_inner();
        let scope = convert::scope("name", &request.name).map_err(bad_field)?;
        let content = [request.name.as_str(), &request.etag];
        let call = parse::call("DeletePolicy", &request.request_id, &content).map_err(bad_field)?;
        let was = self.app.delete_policy(&call, &scope, &request.etag).await.map_err(to_status)?;
        Ok(Response::new(pb::DeletePolicyResponse { policy: Some(convert::stored(was)) }))
    }

    async fn get_effective_policy(
        &self,
        request: Request<pb::GetEffectivePolicyRequest>,
    ) -> Answer<pb::GetEffectivePolicyResponse> {
        let request = request.into_inner();
        let course = parse::course(&request.course_id).map_err(bad_field)?;
        let student = match request.student_id.as_str() {
            "" => None,
            id => Some(parse::student("student_id", id).map_err(bad_field)?),
        };
        let (effective, version) =
            self.app.effective(course.as_ref(), student.as_ref()).await.map_err(to_status)?;
        let policy = Some(convert::effective(effective, version));
        Ok(Response::new(pb::GetEffectivePolicyResponse { policy }))
    }
}
