"""The steps of a conversion, in the order in which `zq2onnx.pipeline` takes them.

loading    read the graph, leave the weights on disk
protos     what a parsed file holds that a graph would not show
choices    what a user may say; recipe, the same in a file
options    what was asked for: which choice wins, and which go together
dumps      the graph after every pass
placement  where every output tensor goes
compute    what a worker does with one weight
stream     the workers
calibration  samples and the float graph; stream_calibrated, the workers, one transformer block after the
           other: global_block, layers that are chosen together; reread, what an earlier run wrote;
           static_scales, what calibration must tell
finish     point the graph at the bytes, give the files their names
identity   what makes two conversions the same
summary    the report
"""
