// The loops of `loops.cpp` by name. Each reads float32 arrays, row-contiguous, and fills others; `numbers` are sizes and
// factors. Nothing here knows MLX: a new loop is a function of this form and a line in `loops()`.
#pragma once

#include <map>
#include <string>

using Loop = void (*)(const float* const* in, float* const* out, const double* numbers);

const std::map<std::string, Loop>& loops();
