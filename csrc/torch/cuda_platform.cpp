#include "cuda_platform.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/Exceptions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <vector>

namespace rnnkern {

namespace {

cudaDataType_t cuda_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64: return CUDA_R_64F;
    case Dtype::float32: return CUDA_R_32F;
    case Dtype::bfloat16: return CUDA_R_16BF;
    case Dtype::float16: break;
  }
  return CUDA_R_16F;
}

cublasComputeType_t compute_type(const Gemm& product) {
  if (product.dtype == Dtype::float64) return CUBLAS_COMPUTE_64F;
  return product.dtype == Dtype::float32 && product.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

}  // namespace

struct TorchCudaPlatform::State {
  c10::cuda::CUDAGuard device;
  cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  cublasHandle_t blas = at::cuda::getCurrentCUDABlasHandle();
  cublasMath_t math_mode = CUBLAS_DEFAULT_MATH;
  std::vector<c10::DataPtr> blocks;

  // torch leaves its own precision settings in the handle, made for matmul. Here each product names its precision, and
  // sums of 16-bit values stay in float32 to the end.
  explicit State(int device_index) : device(static_cast<c10::DeviceIndex>(device_index)) {
    int const own = CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    TORCH_CUDABLAS_CHECK(cublasGetMathMode(blas, &math_mode));
    TORCH_CUDABLAS_CHECK(cublasSetMathMode(blas, static_cast<cublasMath_t>(own)));
  }
  ~State() { cublasSetMathMode(blas, math_mode); }
};

TorchCudaPlatform::TorchCudaPlatform(int device_index) : state_(std::make_unique<State>(device_index)) {}
TorchCudaPlatform::~TorchCudaPlatform() = default;

void* TorchCudaPlatform::scratch(size_t bytes) {
  state_->blocks.push_back(at::cuda::getCUDADeviceAllocator()->allocate(bytes));
  return state_->blocks.back().get();
}

void* TorchCudaPlatform::stream() const { return state_->stream; }

// cuBLAS is column-major, where a row-major matrix is its own transpose: C^T = op(B)^T op(A)^T.
void TorchCudaPlatform::gemm(const Gemm& p) {
  float const one = 1, keep = p.accumulate ? 1 : 0;
  double const one_double = one, keep_double = keep;
  bool const wide = p.dtype == Dtype::float64;
  const void* const alpha = wide ? static_cast<const void*>(&one_double) : &one;
  const void* const beta = wide ? static_cast<const void*>(&keep_double) : &keep;
  cublasOperation_t const op_a = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublasOperation_t const op_b = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  cudaDataType_t const in = cuda_type(p.dtype), out = cuda_type(p.out_dtype);
  if (p.count == 1) {
    TORCH_CUDABLAS_CHECK(cublasGemmEx_64(state_->blas, op_b, op_a, p.n, p.m, p.k, alpha, p.b, in, p.ldb, p.a, in, p.lda,
                                         beta, p.c, out, p.ldc, compute_type(p), CUBLAS_GEMM_DEFAULT));
  } else {
    TORCH_CUDABLAS_CHECK(cublasGemmStridedBatchedEx_64(state_->blas, op_b, op_a, p.n, p.m, p.k, alpha, p.b, in, p.ldb,
                                                       p.stride_b, p.a, in, p.lda, p.stride_a, beta, p.c, out, p.ldc,
                                                       p.stride_c, p.count, compute_type(p), CUBLAS_GEMM_DEFAULT));
  }
}

}  // namespace rnnkern
