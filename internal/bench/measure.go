package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

const (
	// quietTime without a new line means that the daemon has written all it
	// is going to write; after drainTimeout it is not waited for any longer.
	quietTime    = time.Second
	drainTimeout = 60 * time.Second
)

// A measurement is what happened at one rate.
type measurement struct {
	Rate     string  `json:"rate"`     // asked for, in probes per second
	Sent     int     `json:"sent"`     // probes, each from a source of its own
	Received uint64  `json:"received"` // packets on the target's interface
	Seconds  float64 `json:"seconds"`  // from the first probe to the last
	History  tally   `json:"history"`

	CPUSeconds float64 `json:"cpu_seconds"` // user and system time of the daemon
	LagSeconds float64 `json:"lag_seconds"` // from the last probe to the last line
	PeakMemory int64   `json:"peak_memory"` // bytes resident
	Losses     losses  `json:"losses"`
}

// A bench is what all measurements share.
type bench struct {
	daemon string        // path
	limit  time.Duration // for sending at one rate
	cores  cores
	wire   *wire
}

// measure sends the probes of n sources at a rate to a new daemon.
func (b *bench) measure(ctx context.Context, rate, n int) (*measurement, error) {
	d, err := startDaemon(ctx, b.daemon, config, readyText, b.cores.Daemon)
	if err != nil {
		return nil, err
	}
	m := &measurement{Rate: rateName(rate)}
	end, err := b.load(ctx, d, m, rate, n)
	if err != nil {
		d.kill()
		return nil, err
	}
	if err := d.stop(); err != nil {
		return nil, err
	}
	m.Losses = statedLosses(stderrTail())
	if file, err := os.Stat(historyFile); err == nil {
		m.LagSeconds = max(0, file.ModTime().Sub(end).Seconds())
	}
	m.History, err = tallyFile(historyFile, m.Sent)
	return m, err
}

// load sends the probes, waits until the daemon has dealt with them and notes
// what that cost it. It returns the time of the last probe.
func (b *bench) load(ctx context.Context, d *daemon, m *measurement, rate, n int) (time.Time, error) {
	cpuBefore, err := d.cpu()
	if err != nil {
		return time.Time{}, err
	}
	receivedBefore, err := b.wire.received()
	if err != nil {
		return time.Time{}, err
	}
	limit := b.limit
	if rate != unpaced {
		limit *= 2 // room to catch up when the machine was busy elsewhere
	}
	began := time.Now()
	err = onThread(func() (err error) {
		if err := pin(b.cores.Generator); err != nil {
			return err
		}
		m.Sent, err = newGenerator(b.wire.socket).send(ctx, n, rate, limit)
		return err
	})
	end := time.Now()
	if err != nil {
		return end, err
	}
	if err := waitQuiet(ctx, d); err != nil {
		return end, err
	}
	m.Seconds = end.Sub(began).Seconds()
	received, err := b.wire.received()
	if err != nil {
		return end, err
	}
	m.Received = received - receivedBefore
	cpu, err := d.cpu()
	if err != nil {
		return end, err
	}
	m.CPUSeconds = (cpu - cpuBefore).Seconds()
	m.PeakMemory, err = d.peakMemory()
	return end, err
}

// waitQuiet returns when the history file has stopped growing.
func waitQuiet(ctx context.Context, d *daemon) error {
	deadline := time.Now().Add(drainTimeout)
	quietSince, size := time.Now(), int64(-1)
	for time.Since(quietSince) < quietTime && time.Now().Before(deadline) {
		select {
		case <-d.exited:
			return fmt.Errorf("the daemon ended: %w", d.failure())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
		}
		if file, err := os.Stat(historyFile); err == nil && file.Size() != size {
			quietSince, size = time.Now(), file.Size()
		}
	}
	return nil
}
