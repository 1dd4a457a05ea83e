// SIMT_EXPORT marks a function that Python calls: a launch of a kernel, with plain parameters.
#pragma once

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))
