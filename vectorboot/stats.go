package vectorboot

import (
	"sync/atomic"
	"time"
)

// Stats counts since the start of the daemon.
type Stats struct {
	Loads, FailedLoads, BytesLoaded, LoadNanos       atomic.Int64
	Commits, Reads, BytesRead, Evictions, Interrupts atomic.Int64
}

// Metric is one row of the table behind stats.json and metrics.
type Metric struct {
	Name, Help string
	Gauge      bool // a value that can fall, not a counter
	Value      func(*Runtime) float64
}

func count(f func(*Stats) *atomic.Int64) func(*Runtime) float64 {
	return func(rt *Runtime) float64 { return float64(f(&rt.Stats).Load()) }
}

// Metrics lists every number that the runtime reports.
var Metrics = []Metric{
	{"loads", "models loaded, replacements included", false, count(func(s *Stats) *atomic.Int64 { return &s.Loads })},
	{"failed_loads", "files that were refused", false, count(func(s *Stats) *atomic.Int64 { return &s.FailedLoads })},
	{"bytes_loaded", "bytes of the models loaded", false, count(func(s *Stats) *atomic.Int64 { return &s.BytesLoaded })},
	{"load_seconds", "time from the end of writing to a readable layout, summed", false, func(rt *Runtime) float64 {
		return time.Duration(rt.Stats.LoadNanos.Load()).Seconds()
	}},
	{"commits", "changes committed to loaded models", false, count(func(s *Stats) *atomic.Int64 { return &s.Commits })},
	{"reads", "read requests that the daemon answered (passthrough reads never reach it)", false, count(func(s *Stats) *atomic.Int64 { return &s.Reads })},
	{"bytes_read", "bytes that the daemon answered reads with", false, count(func(s *Stats) *atomic.Int64 { return &s.BytesRead })},
	{"evictions", "models sent back to SOURCE", false, count(func(s *Stats) *atomic.Int64 { return &s.Evictions })},
	{"interrupts", "interrupts sent to sessions", false, count(func(s *Stats) *atomic.Int64 { return &s.Interrupts })},
	{"models", "models known", true, func(rt *Runtime) float64 { return float64(len(rt.Paths())) }},
	{"resident_bytes", "shared memory in use", true, func(rt *Runtime) float64 { used, _ := rt.store.Usage(); return float64(used) }},
	{"limit_bytes", "shared memory limit", true, func(rt *Runtime) float64 { _, limit := rt.store.Usage(); return float64(limit) }},
	{"history_bytes", "shared memory that is kept of old generations", true, func(rt *Runtime) float64 { return float64(rt.historyBytes()) }},
	{"pending_files", "files not yet written back to SOURCE", true, func(rt *Runtime) float64 { n, _ := rt.Pending(); return float64(n) }},
	{"pending_bytes", "bytes not yet written back to SOURCE", true, func(rt *Runtime) float64 { _, b := rt.Pending(); return float64(b) }},
	{"uptime_seconds", "seconds since the start", true, func(rt *Runtime) float64 { return rt.Uptime().Truncate(time.Millisecond).Seconds() }},
}

// Pending is what SOURCE still lacks, in files and bytes.
func (rt *Runtime) Pending() (files int, bytes int64) {
	if rt.source == nil {
		return 0, 0
	}
	return rt.source.Pending()
}
