// Prints the best build for this CPU; CMake runs it for MARKOVLM_BUILDS=native.
#include "cpu_level.hpp"

#include <cstdio>

int main() { std::puts(markovlm::runnable_builds().front().c_str()); }
