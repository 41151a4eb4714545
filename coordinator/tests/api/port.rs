//! The port: what is served on it beside the public interface, and how it closes.

use std::time::Duration;

use haulage_proto::v1::haulage_client::HaulageClient;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1alpha;

use super::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn one_port_serves_everything_and_closes_with_streams_open() {
    let stage = Stage::set().await;
    let (coordinator, _) = stage.coordinator().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let served = coordinator.serve(listener, async { drop(stopped.await) }).await;
        (coordinator, served)
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect().await.expect("connects");

    let mut client = HaulageClient::new(channel.clone());
    let run = submitted(&mut client).await;
    let mut stream = watch(&mut client, &run, 0).await;
    assert!(stream.message().await.expect("a first message").is_some());

    let health = HealthCheckRequest {
        service: "haulage.v1.Haulage".to_owned(),
    };
    let health = HealthClient::new(channel.clone())
        .check(health)
        .await
        .expect("health")
        .into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);
    assert!(
        services(channel.clone())
            .await
            .contains(&"haulage.v1.Haulage".to_owned())
    );
    assert!(services_alpha(channel).await.contains(&"haulage.v1.Haulage".to_owned()));

    let since = tokio::time::Instant::now();
    stop.send(()).expect("it serves");
    let ended = within("the stream to end", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status.code()),
            }
        }
    })
    .await;
    assert_eq!(
        ended,
        Some(Code::Unavailable),
        "a watcher learns that the run isn't over"
    );
    let (_, served) = within("the port to close", serving).await.expect("no panic");
    served.expect("closes well");
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "closed after {:?}",
        since.elapsed()
    );
}

async fn services(channel: tonic::transport::Channel) -> Vec<String> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut stream = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("reflection")
        .into_inner();
    match stream
        .next()
        .await
        .expect("an answer")
        .expect("no error")
        .message_response
    {
        Some(MessageResponse::ListServicesResponse(list)) => list.service.into_iter().map(|one| one.name).collect(),
        other => panic!("unexpected answer {other:?}"),
    }
}

async fn services_alpha(channel: tonic::transport::Channel) -> Vec<String> {
    use v1alpha::server_reflection_request::MessageRequest;
    use v1alpha::server_reflection_response::MessageResponse;
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut stream = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("reflection")
        .into_inner();
    match stream
        .next()
        .await
        .expect("an answer")
        .expect("no error")
        .message_response
    {
        Some(MessageResponse::ListServicesResponse(list)) => list.service.into_iter().map(|one| one.name).collect(),
        other => panic!("unexpected answer {other:?}"),
    }
}
