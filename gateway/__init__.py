"""REST, WebSocket and the page that shows them."""
