# From the names of architectures, as TORCH_CUDA_ARCH_LIST spells them, to what is compiled for them.

# The flags for a list of entries such as 8.0+PTX, and their names as sm_ and compute_ spell them.
function(gencode_flags archs flags names)
  set(all_flags)
  set(all_names)
  foreach(arch IN LISTS archs)
    if(NOT arch MATCHES "^([0-9]+)[.]([0-9])([af]?)([+]PTX)?$")
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected entries such as 8.0, 8.0+PTX or 9.0a, got ${arch}")
    endif()
    set(name ${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3})
    list(APPEND all_flags -gencode=arch=compute_${name},code=sm_${name})
    if(CMAKE_MATCH_4)
      list(APPEND all_flags -gencode=arch=compute_${name},code=compute_${name})
    endif()
    list(APPEND all_names ${name}${CMAKE_MATCH_4})
  endforeach()
  string(JOIN "," all_names ${all_names})  # a definition cannot hold a semicolon: CMake splits there
  set(${flags} ${all_flags} PARENT_SCOPE)
  set(${names} ${all_names} PARENT_SCOPE)
endfunction()

# Those that stationary is compiled for, which has many and large kernels: 8.0 and up; 12.0 uses 8.x's PTX where there is
# some (that of 9.0a and 10.0a is for themselves alone). `clusters`: whether some have them.
function(stationary_archs_of archs found clusters)
  set(all)
  set(${clusters} OFF PARENT_SCOPE)
  string(REGEX MATCH "(^|;)8[.][0-9][+]PTX" has_ptx "${archs}")
  foreach(arch IN LISTS archs)
    string(REGEX REPLACE "^(9[.]0|10[.]0)(([+]PTX)?)$" "\\1a\\2" arch "${arch}")
    if(arch MATCHES "^[1-7][.]" OR (arch MATCHES "^12[.]" AND has_ptx))
      continue()
    endif()
    list(APPEND all ${arch})
    if(NOT arch MATCHES "^8[.]")
      set(${clusters} ON PARENT_SCOPE)
    endif()
  endforeach()
  if(NOT all)  # the kernels must exist, but their instructions do not below 8.0
    set(all 8.0)
  endif()
  set(${found} ${all} PARENT_SCOPE)
endfunction()
