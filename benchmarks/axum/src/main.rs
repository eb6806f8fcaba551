//! An echo of text with axum alone. `benchmark-axum --port N`, ends with standard input.

use std::io::Read;

use axum::{
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    routing::get,
    serve::ListenerExt,
    Router,
};

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if let Message::Text(text) = message {
            if socket.send(Message::Text(text)).await.is_err() {
                return;
            }
        }
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
    let app = Router::new().route(
        "/ws",
        get(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) }),
    );
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port()))
        .await
        .expect("the port is free")
        .tap_io(|stream| stream.set_nodelay(true).expect("TCP_NODELAY can be set"));
    axum::serve(listener, app).await.expect("the server runs");
}
