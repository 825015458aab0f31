package outputs

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/portsnare/portsnare/detector"
)

// runGood runs a module that keeps its promises and waits until it works.
func runGood(b *testing.B) (*Module, ModuleConfig) {
	b.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	config := ModuleConfig{Name: "good", Places: testPlaces(b), SocketDir: shortDir(b), BootID: "boot-1"}
	m := NewModule(config, logrus.NewEntry(log))
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	<-m.Settled()
	if s := m.Status(); s.State != ModuleRunning {
		b.Fatalf("the module is %+v", s)
	}
	return m, config
}

// BenchmarkModuleStart is the time from no process to one that works.
func BenchmarkModuleStart(b *testing.B) {
	_, config := runGood(b)
	log := logrus.New()
	log.SetOutput(io.Discard)
	for b.Loop() {
		i, err := startModule(b.Context(), &config, logrus.NewEntry(log), false)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		i.end()
		b.StartTimer()
	}
}

// BenchmarkModuleCrash is the time from the kill of a process to its being
// noticed.
func BenchmarkModuleCrash(b *testing.B) {
	_, config := runGood(b)
	log := logrus.New()
	log.SetOutput(io.Discard)
	for b.Loop() {
		b.StopTimer()
		i, err := startModule(b.Context(), &config, logrus.NewEntry(log), false)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := syscall.Kill(i.process.pid, syscall.SIGKILL); err != nil {
			b.Fatal(err)
		}
		<-i.process.exited
		b.StopTimer()
		i.end()
		b.StartTimer()
	}
}

func BenchmarkModuleDeliver(b *testing.B) {
	m, _ := runGood(b)
	for _, n := range []int{1, batchLimit} {
		b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
			events := someEvents(n)
			b.ReportAllocs()
			for b.Loop() {
				if err := m.Deliver(b.Context(), events); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkModuleSetBans(b *testing.B) {
	m, _ := runGood(b)
	bans := make([]detector.Ban, 100_000)
	for i := range bans {
		bans[i] = bansOf(fmt.Sprintf("198.51.%d.%d", i>>8&255, i&255))[0]
	}
	runtime.GC()
	for b.Loop() {
		if _, err := m.SetBans(b.Context(), bans); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(bans)*b.N)/b.Elapsed().Seconds(), "bans/s")
}
