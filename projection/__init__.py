"""The availability index: a projection of the rows that can be searched, kept by a consumer.

It is also the worked example for a search index of one's own: `projection.follower` is what a
handler of `engine.consumer` looks like.
"""
