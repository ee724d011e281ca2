// Fork and join by events. An event may be recorded again while a stream still waits for its earlier recording: a wait
// takes the recording that it found.
#include "exec/fork_join.h"

#include <algorithm>

namespace nexus {

void ForkJoin::reserve(size_t branches) {
  if (branches == 0) return;
  if (forked_ == nullptr) forked_ = Event::create(device_);
  while (reached_.size() < branches) reached_.push_back(Event::create(device_));
  open_.reserve(branches);
}

void ForkJoin::fork(const std::shared_ptr<Stream>& from) {
  reserve(1);
  forked_->record(*from);
  from_ = from;
}

void ForkJoin::begin(const std::shared_ptr<Stream>& branch) {
  if (branch == from_ || std::find(open_.begin(), open_.end(), branch) != open_.end()) return;
  reserve(open_.size() + 1);
  branch->wait(*forked_);
  open_.push_back(branch);  // room was reserved: this does not fail
}

void ForkJoin::join() {
  for (size_t i = 0; i < open_.size(); ++i) {
    reached_[i]->record(*open_[i]);
    from_->wait(*reached_[i]);
  }
  open_.clear();
  from_.reset();
}

void ForkJoin::abandon() noexcept {
  for (size_t i = 0; i < open_.size(); ++i) {
    try {
      reached_[i]->record(*open_[i]);
      from_->wait(*reached_[i]);
    } catch (...) {
      try {
        open_[i]->synchronize();
      } catch (...) {
        // The branch has failed: it runs nothing more, and says so to whoever uses it next.
      }
    }
  }
  open_.clear();
  from_.reset();
}

}  // namespace nexus
