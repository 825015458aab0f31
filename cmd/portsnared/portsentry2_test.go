package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portsnare/portsnare/internal/version"
)

// A refusal is a run of the daemon as PortSentry 2 that ends before it watches.
type refusal struct {
	name    string
	args    string            // default: -c portsentry.conf
	config  string            // its portsentry.conf
	files   map[string]string // more files
	prepare func() error      // what else is to be done before; may be nil
}

// The errors of a command line and of a configuration read as PortSentry 2's, on
// the same streams and with the same statuses. What is ours comes after.
func TestWhatPortSentry2Refuses(t *testing.T) {
	const fine = `TCP_PORTS="11"` + "\n"
	ignore := func(name, text string) refusal {
		return refusal{
			name: "ignore file, " + name, args: "--connect -c portsentry.conf",
			config: fine + "IGNORE_FILE=\"ignore\"\n", files: map[string]string{"ignore": text},
		}
	}
	ports := func(token string) refusal {
		return refusal{name: "port " + token, config: `TCP_PORTS="` + token + "\"\n"}
	}
	value := func(key, value string) refusal {
		return refusal{name: key + " " + value, config: fine + key + `="` + value + "\"\n"}
	}
	tests := []refusal{
		{name: "version", args: "-V"},
		{name: "version, abbreviated", args: "--vers"},
		{name: "two modes", args: "--stealth --connect"},
		{name: "a mode twice", args: "--conn --connect"},
		{name: "kinds of interfaces mixed", args: "-i ALL -i eth0"},
		{name: "interface too long", args: "-i abcdefghijklmnop"},
		{name: "method", args: "-m ebpf"},
		{name: "log output", args: "-l file"},
		{name: "path too long", args: "-c " + strings.Repeat("p", 5000)},
		{name: "unknown option", args: "-x"},
		{name: "unknown long option", args: "--colour"},
		{name: "missing argument", args: "-c"},
		{name: "option of PortSentry 1.2", args: "-tcp -d"},

		{name: "no such file", args: "-c absent.conf"},
		{name: "leading blank", config: " TCP_PORTS=\"11\"\n"},
		{name: "lower case", config: "tcp_ports=\"11\"\n"},
		{name: "line of blanks", config: fine + "  \n"},
		{name: "unknown key", config: "# comment\n" + fine + "COLOUR=\"blue\"\n"},
		{name: "key of PortSentry 1.2", config: fine + "ADVANCED_PORTS_TCP=\"1024\"\n"},
		{name: "no equals", config: "TCP_PORTS \"11\"\n"},
		{name: "no opening quote", config: "TCP_PORTS=11\n"},
		{name: "no closing quote", config: "TCP_PORTS=\"11\n"},
		{name: "line too long", config: "TCP_PORTS=\"" + strings.Repeat("11,", 400) + "\"\n"},
		{name: "empty value", config: "TCP_PORTS=\"\"\n"},

		{name: "TCP_PORTS without a port", config: "TCP_PORTS=\",\"\n"},
		{name: "UDP_PORTS without a port", config: fine + "UDP_PORTS=\",,\"\n"},
		value("RESOLVE_HOST", "2"), value("BLOCK_TCP", "3"), value("BLOCK_UDP", "yes"),
		value("KILL_RUN_CMD_FIRST", "-1"), value("SCAN_TRIGGER", "-1"), value("KILL_IGNORE_STATUS", "2"),
		{name: "no ports, stealth", config: "BLOCK_TCP=\"0\"\n"},
		{name: "no ports, connect", args: "--connect -c portsentry.conf", config: "BLOCK_TCP=\"0\"\n"},
		{name: "BLOCK 2 without a command", config: fine + "BLOCK_UDP=\"2\"\n"},
		{name: "BLOCK 1 with a command alone", config: fine + "BLOCK_TCP=\"1\"\nKILL_RUN_CMD=\"true\"\n"},
		{name: "several faults", config: "TCP_PORTS=\"5-1\"\nCOLOUR=\"blue\"\n"},

		ports("abc"), ports("0"), ports("65536"), ports("1 "), ports("-5"), ports("0-5"), ports("1-"),
		ports("1-70000"), ports("1-2-3"), ports("5-1"), ports("10000-200000"),

		{name: "no ignore file", args: "--connect -c portsentry.conf", config: fine + "IGNORE_FILE=\"absent\"\n"},
		ignore("a name", "scanner.example.net\n"), ignore("a dotted mask", "192.0.2.0/255.255.255.0\n"),
		ignore("bits of IPv4", "192.0.2.0/33\n"), ignore("bits of IPv6", "2001:db8::/129\n"), ignore("no address", "192.0.2\n"),

		{name: "history is a directory", args: "--connect -c portsentry.conf", config: fine + "HISTORY_FILE=\".\"\n"},
		{name: "history below a file", args: "--connect -c portsentry.conf", config: fine + "HISTORY_FILE=\"portsentry.conf/history\"\n"},
		{name: "blocked file is a directory", args: "--connect -c portsentry.conf", config: fine + "BLOCKED_FILE=\"/\"\n"},
		{name: "blocked file below a file", args: "--connect -c portsentry.conf", config: fine + "BLOCKED_FILE=\"/dev/null/blocked\"\n"},
		{
			name: "blocked file that anybody can write", args: "--connect -c portsentry.conf",
			config: fine + "BLOCKED_FILE=\"blocked\"\n", files: map[string]string{"blocked": ""},
			prepare: func() error { return errors.Join(os.Chmod(".", 0o1777), os.Chmod("blocked", 0o666)) },
		},
		{
			name: "blocked file of PortSentry 1.2", args: "--connect -c portsentry.conf",
			config: fine + "BLOCKED_FILE=\"blocked\"\n", files: map[string]string{"blocked": listOfPortSentry1},
		},
	}
	var got strings.Builder
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, &got) })
	}
	golden(t, "portsentry2-refuses", []byte(strings.ReplaceAll(got.String(), "portsnare "+version.String(), "portsnare VERSION")))
}

const listOfPortSentry1 = "1795333205 - 11/22/2026 07:40:05 Host: 192.0.2.1/192.0.2.1 Port: 101 TCP Blocked\n"

// run appends what the daemon says, and with which status it ends.
func (r refusal) run(t *testing.T, transcript *strings.Builder) {
	t.Helper()
	t.Chdir(t.TempDir())
	files := map[string]string{"portsentry.conf": r.config}
	maps.Copy(files, r.files)
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r.prepare != nil {
		if err := r.prepare(); err != nil {
			t.Fatal(err)
		}
	}
	args := strings.Fields(cmp.Or(r.args, "-c portsentry.conf"))
	var stdout, stderr bytes.Buffer
	status := run("/usr/sbin/"+portSentry, args, &stdout, &stderr)
	fmt.Fprintf(transcript, "== %s: status %d\n-- stdout\n%s-- stderr\n%s", r.name, status, &stdout, &stderr)
	for name, text := range files {
		if got := readFile(t, name); got != text {
			t.Errorf("the file %s was changed to %q", name, got)
		}
	}
	if left, err := filepath.Glob("*"); err != nil || len(left) != len(files) {
		t.Errorf("%q are left, %v", left, err)
	}
}
