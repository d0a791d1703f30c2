#include "process.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "bert_infer.h"
#include "output_file.h"

namespace demobert {
namespace {

constexpr std::size_t kLongestError = 1500;  // bytes: names in it are as long as they like

constexpr const char* kMemoryIsShort = "not enough memory for this model, batch size and sequence length";

int print_failure = 0;  // the first errno of print; 0: none

const char* program = "";  // its name, for errors

// Whether a byte goes on with the character before it, in UTF-8.
bool goes_on(char byte) {
    return (static_cast<unsigned char>(byte) & 0xc0) == 0x80;
}

// `line`, or its two ends: the reason stands last.
std::string shortened(const std::string& line) {
    if (line.size() <= kLongestError) {
        return line;
    }
    std::size_t head = kLongestError * 2 / 3, tail = line.size() - kLongestError / 3;
    while (head > 0 && goes_on(line[head])) {
        --head;
    }
    while (tail < line.size() && goes_on(line[tail])) {
        ++tail;
    }
    return line.substr(0, head) + " ... " + line.substr(tail);
}

void tell(const std::string& message) {
    std::fprintf(stderr, "%s: error: %s\n", program, shortened(one_line(message)).c_str());
}

// Files that are opened later must not take the numbers of the standard streams: reports would be written into them.
void open_closed_streams() {
    for (const int number : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (fcntl(number, F_GETFD) < 0 && errno == EBADF) {
            // It gets this number, the lowest that is free. What is printed to a closed stdout must fail, so it can't
            // be written; nobody is told of a closed stderr.
            open("/dev/null", number == STDERR_FILENO ? O_WRONLY : O_RDONLY);
        }
    }
}

[[noreturn]] void end_by_signal(int signal) {
    abandon_outputs();
    _exit(128 + signal);
}

// Waits for the signals that end a process in a thread of its own. A handler would come at any moment, in which it
// can't know what to remove.
void watch_signals() {
    static sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction before {};
        sigaction(signal, nullptr, &before);
        if (before.sa_handler != SIG_IGN) {  // nohup, or a shell's background: it stays ignored
            sigaddset(&signals, signal);
        }
    }
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // threads that are made from now on have it, too
    const auto wait = [] {
        int signal = 0;
        if (sigwait(&signals, &signal) == 0) {
            end_by_signal(signal);
        }
    };
    try {
        std::thread(wait).detach();
    } catch (const std::system_error&) {
        throw Error("can't start a thread: memory is short, or there are too many processes");
    }
}

// What no code of ours could catch, since it was thrown in a backend's thread, or while another error was: so it goes
// where memory is short.
[[noreturn]] void end_by_exception() {
    try {
        if (const auto current = std::current_exception()) {
            std::rethrow_exception(current);
        }
        tell("it ended without a reason");
    } catch (const std::bad_alloc&) {
        tell(kMemoryIsShort);
    } catch (const std::exception& error) {
        tell("memory may be short: " + std::string(error.what()));
    } catch (...) {
        tell("memory may be short: it ended by an error that says nothing");
    }
    abandon_outputs();
    _exit(1);
}

int code_of(const std::function<void()>& work) {
    try {
        work();
        return 0;
    } catch (const UsageError& error) {
        tell(std::string(error.what()) + " (-h explains the flags)");
        return 2;
    } catch (const Error& error) {
        tell(error.what());
    } catch (const std::bad_alloc&) {
        tell(kMemoryIsShort);
    } catch (const std::exception& error) {
        tell(tells_of_short_memory(error.what()) ? kMemoryIsShort : error.what());
    }
    return 1;
}

}  // namespace

void print(const char* format, ...) {
    va_list values;
    va_start(values, format);
    const bool printed = std::vprintf(format, values) >= 0 && std::fflush(stdout) == 0;
    if (!printed && print_failure == 0) {
        print_failure = errno;
    }
    va_end(values);
}

bool all_was_printed() {
    return print_failure == 0;
}

int run_program(const char* name, const std::function<void()>& work) {
    program = name;
    open_closed_streams();
    // Writing then fails, as it does on a full disk, instead of ending the process.
    std::signal(SIGPIPE, SIG_IGN);
    std::signal(SIGXFSZ, SIG_IGN);
    std::set_terminate(end_by_exception);
    const int code = code_of([&] {
        watch_signals();
        work();
    });
    if (code != 0 || print_failure == 0) {
        return code;
    }
    if (print_failure != EPIPE) {  // with the reader of a pipe, whoever could be told has gone
        tell(std::string("can't write to stdout: ") + std::strerror(print_failure));
    }
    return 1;
}

}  // namespace demobert
