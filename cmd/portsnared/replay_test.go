package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestReplayGolden pins what the captures made with real nmap lead to: lines
// and events.
func TestReplayGolden(t *testing.T) {
	captures, err := filepath.Glob("../../detector/capture/testdata/*.pcap*")
	if err != nil || len(captures) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	for _, file := range captures {
		name := filepath.Base(file)
		if filepath.Ext(name) == ".golden" { // of the capture package
			continue
		}
		t.Run(name, func(t *testing.T) {
			args := []string{"-c", "testdata/replay.toml", "-r", file, "--local", "192.0.2.2,2001:db8::2"}
			golden(t, name+".lines", runReplay(t, args...))
			golden(t, name+".json", runReplay(t, append(args, "--json")...))
		})
	}
}

func runReplay(t *testing.T, args ...string) []byte {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if status := run("portsnared", args, &stdout, &stderr); status != exitOK || stderr.Len() > 0 {
		t.Fatalf("portsnared %q: exit status %d\n%s", args, status, &stderr)
	}
	return stdout.Bytes()
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: (-want +got)\n%s", name, diff)
	}
}

// A capture cut short is reported as far as it goes.
func TestReplayOfADamagedCapture(t *testing.T) {
	whole, err := os.ReadFile("../../detector/capture/testdata/nmap-sS-ipv4.pcap")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cut.pcap")
	if err := os.WriteFile(file, whole[:len(whole)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	args := []string{"-c", "testdata/replay.toml", "-r", file, "--local", "192.0.2.2"}
	if status := run("portsnared", args, &stdout, &stderr); status != exitFault {
		t.Errorf("exit status %d, want %d", status, exitFault)
	}
	if got := strings.Count(stdout.String(), "\n"); got != 4 {
		t.Errorf("%d lines, want the 4 of the whole capture", got)
	}
	if !strings.Contains(stderr.String(), "cut.pcap: record ") {
		t.Errorf("standard error does not name the file and record: %s", &stderr)
	}
}
