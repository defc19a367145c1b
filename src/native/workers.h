// Threads that work through numbered jobs, in their order, together with the thread that waits for them.
#pragma once
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

template <class Owner> class Workers {  // Owner has work(int job)
  public:
    Workers(Owner& owner, int n_threads) : owner_(owner) {
        threads_.reserve(n_threads);
        try {
            for (int i = 1; i < n_threads; ++i) threads_.emplace_back([this] { stay(); });
        } catch (const std::system_error&) {
        }  // the system gives no more threads: fewer do the same work
    }
    ~Workers() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true, next_ = n_jobs_;
        }
        changed_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    // Starts jobs 0 to n - 1; those before have been waited for.
    void start(int n) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            n_jobs_ = n, next_ = 0, finished_.assign(n, false), first_unfinished_ = 0;
        }
        changed_.notify_all();
    }

    // Works until jobs 0 to n - 1 are finished, and calls `between` after each; raises what one of them raised.
    template <class Between> void wait_for(int n, Between between) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (next_ < n && !error_) {
            one(lock);
            unlocked(lock, between);
        }
        changed_.wait(lock, [&] { return first_unfinished_ >= n || error_; });
        if (!error_) return;
        next_ = n_jobs_;  // what has not begun is left
        changed_.wait(lock, [&] { return running_ == 0; });
        n_jobs_ = next_ = first_unfinished_ = 0;
        std::rethrow_exception(std::exchange(error_, nullptr));
    }
    void wait_for_all() {
        wait_for(n_jobs_, [] {});
    }

  private:
    void stay() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            changed_.wait(lock, [&] { return stop_ || next_ < n_jobs_; });
            if (stop_) return;
            one(lock);
        }
    }
    void one(std::unique_lock<std::mutex>& lock) {
        const int job = next_++;
        ++running_;
        unlocked(lock, [&] { owner_.work(job); });
        --running_;
        finished_[job] = true;
        while (first_unfinished_ < n_jobs_ && finished_[first_unfinished_]) ++first_unfinished_;
        changed_.notify_all();
    }

    template <class Do> void unlocked(std::unique_lock<std::mutex>& lock, Do something) {
        lock.unlock();
        std::exception_ptr error;
        try {
            something();
        } catch (...) {
            error = std::current_exception();
        }
        lock.lock();
        if (error) error_ = error;
    }

    Owner& owner_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<bool> finished_;
    std::exception_ptr error_;
    int n_jobs_ = 0, next_ = 0, first_unfinished_ = 0, running_ = 0;
    bool stop_ = false;
};
