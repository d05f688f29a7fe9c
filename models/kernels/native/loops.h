// The loops of `loops.cpp` by name. Each reads float32 arrays, row-contiguous, and fills others; `numbers` are sizes and
// factors. Nothing here knows MLX: a new loop is a function of this form and a line in `loops()`.
#pragma once

#include <map>
#include <string>

using Loop = void (*)(const float* const* in, float* const* out, const double* numbers);

// cblas_sgemm of the process's BLAS: C = alpha · op(A) op(B) + beta · C
using Sgemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
extern Sgemm sgemm;

const std::map<std::string, Loop>& loops();
