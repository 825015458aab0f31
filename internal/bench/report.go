package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// A report is the outcome of all measurements.
type report struct {
	Machine string         `json:"machine"`
	Cores   cores          `json:"cores"`
	Rates   []*measurement `json:"rates"`

	Reactions []*reaction `json:"reactions,omitempty"`
}

func newReport(c cores) *report {
	return &report{Machine: machine(), Cores: c}
}

// machine describes where the figures come from.
func machine() string {
	kernel := "unknown kernel"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = "Linux " + unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%s, %s, %d cores, %s", kernel, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
}

func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// writeTable writes the report in Markdown.
func (r *report) writeTable(w io.Writer) error {
	if len(r.Reactions) > 0 {
		if err := r.writeReactions(w); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s; generator and receiving kernel on core %d, daemon on core %d\n\n"+
		"| rate | reached/s | sources | logged | logged %% | other lines | CPU s per 1 M sent | CPU s per 1 M logged | peak memory MiB | lost packets / events | last line after s |\n"+
		"|---|---|---|---|---|---|---|---|---|---|---|\n",
		r.Machine, r.Cores.Generator, r.Cores.Daemon)
	if err != nil {
		return err
	}
	for _, m := range r.Rates {
		h := m.History
		_, err := fmt.Fprintf(w, "| %s | %.0f | %d | %d | %s | %d | %s | %s | %.1f | %s | %.3f |\n",
			m.Rate, float64(m.Sent)/m.Seconds, m.Sent, h.Sources, percent(h.Sources, m.Sent),
			h.Duplicates+h.Strangers+h.Malformed,
			perMillion(m.CPUSeconds, m.Sent), perMillion(m.CPUSeconds, h.Sources),
			float64(m.PeakMemory)/(1<<20), stated(m.Losses.Packets)+" / "+stated(m.Losses.Events), m.LagSeconds)
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *report) writeReactions(w io.Writer) error {
	_, err := fmt.Fprint(w, "From the first probe of a source to its first packet that is dropped:\n\n"+
		"| other sources/s | bans | failed | p50 ms | p99 ms | longest ms |\n|---|---|---|---|---|---|\n")
	for _, m := range r.Reactions {
		_, failed := fmt.Fprintf(w, "| %d | %d | %d | %.2f | %.2f | %.2f |\n", m.Others, m.Bans, m.Failed,
			m.Median.Seconds()*1000, m.P99.Seconds()*1000, m.Longest.Seconds()*1000)
		err = errors.Join(err, failed)
	}
	_, last := fmt.Fprintln(w)
	return errors.Join(err, last)
}

// percent never rounds up to 100: that stands for all.
func percent(part, whole int) string {
	if part == whole {
		return "100"
	}
	return fmt.Sprintf("%.2f", float64(part*10_000/whole)/100)
}

func perMillion(seconds float64, n int) string {
	if n == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", seconds/float64(n)*1e6)
}

func stated(n *uint64) string {
	if n == nil {
		return "?"
	}
	return strconv.FormatUint(*n, 10)
}
