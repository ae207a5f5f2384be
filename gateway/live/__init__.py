"""Live streams: Kafka feed, hub, snapshot, one module a transport, and the page.

A message takes this way: `kafka_feed` reads the topic `push`, `hub` queues it for each subscriber of its user, and a
transport (`websocket`) sends it. A new transport joins the hub, sends `snapshot.initial_messages`, calls
`Subscriber.begin` with the snapshot's position and then sends what `Subscriber.next` returns until `Subscriber.ended`.
"""
