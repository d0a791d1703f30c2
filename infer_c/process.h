// How a program of ours begins and ends: its streams, its signals, its one line of an error, its exit code. What
// helpers/cli.py is to the scripts.

#pragma once

#include <functional>

namespace demobert {

// Runs `work` as the program `name`, and gives its exit code: 0; 1 for what can't be used, or where stdout can't be
// written; 2 for arguments that can't be used. Each is told in one line on stderr. A signal ends the process with 128
// more than its number; unfinished outputs go with it.
int run_program(const char* name, const std::function<void()>& work);

// printf to stdout, now. A failure is kept for run_program to tell: what else there is to do is done first.
[[gnu::format(printf, 1, 2)]] void print(const char* format, ...);

// Whether all that was printed has arrived.
bool all_was_printed();

}  // namespace demobert
