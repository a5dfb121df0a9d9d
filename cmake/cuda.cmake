# The CUDA part of the core, compiled by nvcc alone: no file that it sees includes torch.
if(CMAKE_VERSION VERSION_LESS 3.26)
  message(FATAL_ERROR "CUDA in C++20 needs CMake 3.26, this is ${CMAKE_VERSION}: pip install cmake")
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF)  # the -gencode flags below name them, PTX included
if(NOT CMAKE_CUDA_HOST_COMPILER)
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

if(RNNKERN_CUDA_ARCHS)
  set(archs ${RNNKERN_CUDA_ARCHS})
else()
  # Compute capability 8.0's PTX serves, through the driver's compiler, whatever has no code of its own here.
  set(archs 7.5 8.0+PTX 9.0)
  if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND archs 10.0 12.0)
  endif()
endif()

include(${CMAKE_CURRENT_LIST_DIR}/archs.cmake)
stationary_archs_of("${archs}" stationary_archs clusters)
gencode_flags("${archs}" gencodes arch_names)
gencode_flags("${stationary_archs}" stationary_gencodes unused)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/core/cuda/*.cu)
file(GLOB stationary_sources CONFIGURE_DEPENDS csrc/core/cuda/stationary/*.cu)
set_source_files_properties(${cuda_sources} PROPERTIES COMPILE_OPTIONS "${gencodes}")
set_source_files_properties(${stationary_sources} PROPERTIES COMPILE_OPTIONS "${stationary_gencodes}")
target_sources(rnnkern_core PRIVATE ${cuda_sources} ${stationary_sources})
target_compile_options(rnnkern_core PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;--extended-lambda;-ftz=true;--threads=4>)  # archs side by side
target_compile_definitions(rnnkern_core PUBLIC
  RNNKERN_WITH_CUDA "RNNKERN_CUDA_ARCHS=\"${arch_names}\""
  $<$<BOOL:${clusters}>:RNNKERN_WITH_CLUSTERS>
  RNNKERN_CUDA_VERSION="${CUDAToolkit_VERSION_MAJOR}.${CUDAToolkit_VERSION_MINOR}")
target_link_libraries(rnnkern_core PUBLIC CUDA::cudart)
set_target_properties(rnnkern_core PROPERTIES CUDA_ARCHITECTURES OFF CUDA_RUNTIME_LIBRARY Shared CUDA_VISIBILITY_PRESET hidden)
