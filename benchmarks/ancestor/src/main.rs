//! An echo of text with websocket_builder. `benchmark-ancestor --port N`, ends with standard input.

use std::io::Read;
use std::net::SocketAddr;

use axum::{
    extract::ws::{Message, WebSocket},
    http::HeaderMap,
    serve::ListenerExt,
};
use futures_util::{stream::SplitSink, SinkExt};
use websocket_builder::{
    websocket_route, DisconnectReason, HandlerFactory, Utf8Bytes, WebSocketHandler,
};

#[derive(Default)]
struct Echo {
    sink: Option<SplitSink<WebSocket, Message>>,
}

impl WebSocketHandler for Echo {
    async fn on_connect(
        &mut self,
        _addr: SocketAddr,
        sink: SplitSink<WebSocket, Message>,
    ) -> anyhow::Result<()> {
        self.sink = Some(sink);
        Ok(())
    }

    async fn on_message(&mut self, text: Utf8Bytes) -> anyhow::Result<()> {
        if let Some(sink) = &mut self.sink {
            sink.send(Message::Text(text)).await?;
        }
        Ok(())
    }

    async fn on_disconnect(&mut self, _reason: DisconnectReason) {}
}

struct EchoFactory;

impl HandlerFactory for EchoFactory {
    type Handler = Echo;

    fn create(&self, _headers: &HeaderMap) -> Self::Handler {
        Echo::default()
    }
}

fn port() -> u16 {
    let arguments: Vec<String> = std::env::args().collect();
    arguments
        .iter()
        .position(|argument| argument == "--port")
        .and_then(|position| arguments.get(position + 1))
        .and_then(|port| port.parse().ok())
        .expect("--port takes a number")
}

#[tokio::main]
async fn main() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port()))
        .await
        .expect("the port is free")
        .tap_io(|stream| stream.set_nodelay(true).expect("TCP_NODELAY can be set"));
    let app = websocket_route("/ws", EchoFactory);
    axum::serve(
        listener,
        app.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .await
    .expect("the server runs");
}
