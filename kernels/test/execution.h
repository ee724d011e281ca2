// What tests of the execution plane share: reading memory back, completions, and processes of their own for what a test
// must not do to this one.
#pragma once
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <string>
#include <vector>

#include "harness.h"

namespace nexus::test {

inline std::vector<uint8_t> download(const std::shared_ptr<Stream>& stream, const void* data, size_t bytes) {
  const auto host = HostBuffer::allocate(stream->device(), bytes);
  stream->copy(host->data(), data, bytes);
  stream->synchronize();
  std::vector<uint8_t> out(bytes);
  if (bytes > 0) std::memcpy(out.data(), host->data(), bytes);
  return out;
}

inline bool all_equal(const std::vector<uint8_t>& v, uint8_t byte) {
  for (uint8_t x : v)
    if (x != byte) return false;
  return true;
}

/// The error that on_complete delivers for what is queued now; fails after 20 s.
inline std::exception_ptr completion_of(const std::shared_ptr<Stream>& stream) {
  auto promise = std::make_shared<std::promise<std::exception_ptr>>();
  auto future = promise->get_future();
  on_complete(stream, [promise](std::exception_ptr e) { promise->set_value(std::move(e)); });
  if (future.wait_for(std::chrono::seconds(20)) != std::future_status::ready) NEXUS_FAIL("no completion came");
  return future.get();
}

inline int threads_of_process() {
  int count = 0;
  if (std::FILE* file = std::fopen("/proc/self/status", "r")) {
    char line[256];
    while (std::fgets(line, sizeof line, file) != nullptr) (void)std::sscanf(line, "Threads: %d", &count);
    std::fclose(file);
  }
  return count;
}

/// Whether this process is one of run_in_child's.
inline bool is_child() { return std::getenv("NEXUS_TEST_CHILD") != nullptr; }

/// Runs the tests whose name contains `filter` in a process of its own, with one more variable set where `name` is not
/// empty; returns its exit status.
inline int run_in_child(const std::string& filter, const std::string& name = "", const std::string& value = "") {
  std::vector<std::string> variables{"NEXUS_TEST_CHILD=1"};
  if (!name.empty()) variables.push_back(name + "=" + value);
  for (char** v = environ; *v != nullptr; ++v)
    if (name.empty() || std::string(*v).rfind(name + "=", 0) != 0) variables.push_back(*v);
  std::vector<char*> environment;
  for (auto& v : variables) environment.push_back(v.data());
  environment.push_back(nullptr);
  std::string program = "/proc/self/exe", argument = filter;
  char* arguments[] = {program.data(), argument.data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, program.c_str(), &actions, nullptr, arguments, environment.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) NEXUS_FAIL(std::string("posix_spawn: ") + std::strerror(error));
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace nexus::test
