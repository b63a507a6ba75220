//! A listener for HTTP/1.1 and WebSockets that knows no routes: one named thread per connection, limits and deadlines on
//! everything a peer controls.
