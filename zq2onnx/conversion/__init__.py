"""The steps of a conversion, in the order in which `zq2onnx.pipeline` takes them.

loading    read the graph, leave the weights on disk
protos     what a parsed file holds that a graph would not show
options    what was asked for: command line, recipe, defaults
dumps      the graph after every pass
placement  where every output tensor goes
compute    what a worker does with one weight
stream     the workers
calibrated the workers, one transformer block after the other; reread, what an earlier run wrote;
           static_scales, what calibration must tell
finish     point the graph at the bytes, give the files their names
identity   what makes two conversions the same
summary    the report
"""
