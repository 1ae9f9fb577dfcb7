// Stands in for the interpreter of PTX where the fake driver runs the emulation only: without FAKE_PTX neither of these is called.
#include "ptx/ptx.h"
#include <cstdlib>

ptx::Module ptx::read_folder(const std::string &) { abort(); }
void ptx::launch(const Function &, const Launch &, const void *, size_t) { abort(); }
