"""Gateway: serve the REST API, the live streams of browsers and the page that shows them."""
