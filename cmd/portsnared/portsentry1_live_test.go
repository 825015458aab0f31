package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/internal/nettest"
)

// debianConfig is a portsentry.conf of PortSentry 1.2 with its files where the
// sentry's /etc is; what a test adds comes after it.
const debianConfig = `TCP_PORTS="111,11"
UDP_PORTS="7,11"
ADVANCED_PORTS_TCP="20"
ADVANCED_PORTS_UDP="20"
ADVANCED_EXCLUDE_TCP="13,17"
IGNORE_FILE="/etc/portsentry/portsentry.ignore"
HISTORY_FILE="/etc/portsentry/portsentry.history"
BLOCKED_FILE="/etc/portsentry/portsentry.blocked"
RESOLVE_HOST = "0"
`

// Where the files of debianConfig are for a test.
const (
	config1  = "etc/portsentry/portsentry.conf"
	ignore1  = "etc/portsentry/portsentry.ignore"
	history1 = "etc/portsentry/portsentry.history"
	blocked1 = "etc/portsentry/portsentry.blocked."
)

const active1 = "adminalert: PortSentry is now active and listening."

// A sentry1 is a daemon as PortSentry 1.2.
type sentry1 struct {
	*sentry
	daemon background
}

// newSentry1 writes a configuration, and an ignore file that ignores nobody.
func newSentry1(t *testing.T, config string) *sentry1 {
	t.Helper()
	s := &sentry1{sentry: newSentry(t)}
	if !strings.Contains(config, "SCAN_TRIGGER") {
		config += "SCAN_TRIGGER=\"0\"\n"
	}
	s.write(t, config1, debianConfig+config)
	s.write(t, ignore1, "# nobody\n")
	return s
}

// begin starts the daemon with a word of PortSentry 1.2. The program that is
// started goes to the background without a sound but for warnings.
func (s *sentry1) begin(t *testing.T, word string) {
	t.Helper()
	before := countLines(s.syslog, active1)
	parent := s.start(t, word)
	if err := parent.Wait(t); err != nil {
		t.Fatalf("portsentry %s ended with %v, want status 0", word, err)
	}
	if got := parent.Stdout.String(); got != "" {
		t.Errorf("portsentry %s printed %q, want nothing", word, got)
	}
	for _, line := range parent.Stderr.Lines() {
		if !strings.HasPrefix(line, "portsentry: warning: ") {
			t.Errorf("portsentry %s complained %q", word, line)
		}
	}
	waitLines(t, s.syslog, before+1, active1)
	var last syslogLine
	for _, line := range s.syslogLines(t) {
		if line.Text == active1 {
			last = line
		}
	}
	s.daemon = daemonOf(t, last)
}

// end ends the daemon as init does, and returns what it said after it was ready.
func (s *sentry1) end(t *testing.T) []string {
	t.Helper()
	s.daemon.stop(t, syscall.SIGTERM, exitOK)
	s.syslog.WaitLine(t, "adminalert: PortSentry is shutting down")
	texts := s.texts(t)
	texts = texts[slices.Index(texts, active1)+1:]
	said, last := texts[:len(texts)-2], texts[len(texts)-2:]
	want := []string{"securityalert: PortSentry is shutting down", "adminalert: PortSentry is shutting down"}
	if diff := cmp.Diff(want, last); diff != "" {
		t.Errorf("the last two lines (-want +got)\n%s", diff)
	}
	return said
}

// texts returns what was sent to syslog, all of it with one priority.
func (s *sentry1) texts(t *testing.T) (texts []string) {
	t.Helper()
	for _, line := range s.syslogLines(t) {
		if line.PRI != 29 {
			t.Errorf("%+v, want priority 29", line)
		}
		texts = append(texts, line.Text)
	}
	return texts
}

// nmap sends one probe of a kind to a port.
func (s *sentry1) nmap(t *testing.T, port string, kind ...string) {
	t.Helper()
	s.scanner.Run(t, "nmap", append(kind, "-n", "-Pn", "--max-retries", "0", "-p", port, s.target.IPv4.String())...)
}

// The lines of a start and an end, in every mode and with ports that services have.
func TestStartOfPortSentry1(t *testing.T) {
	var got [6]strings.Builder
	words := []string{"-tcp", "-udp", "-stcp", "-sudp", "-atcp", "-audp"}
	t.Run("modes", func(t *testing.T) {
		for i, word := range words {
			t.Run(word, func(t *testing.T) {
				t.Parallel()
				s := newSentry1(t, "")
				for _, port := range []uint16{15, 111} {
					s.target.Listen(t, "tcp", port)
				}
				for _, port := range []uint16{7, 15} {
					s.target.Listen(t, "udp", port)
				}
				s.begin(t, word)
				said := s.end(t)
				lines := s.syslogLines(t)
				if lines[0].PID == lines[len(lines)-1].PID {
					t.Error("the daemon is the process that was started")
				}
				if len(said) > 0 {
					t.Errorf("nobody probed, and it says %q", said)
				}
				fmt.Fprintf(&got[i], "== %s\n%s\n", word, strings.Join(s.texts(t), "\n"))
			})
		}
	})
	var all strings.Builder
	for i := range got {
		all.WriteString(got[i].String())
	}
	golden(t, "portsentry1-start", []byte(all.String()))
}

// What PortSentry 1.2 cannot start with: said in syslog in its words, to whoever
// started it in ours, and told by its status.
func TestWhatPortSentry1Refuses(t *testing.T) {
	shuttingDown := []string{"securityalert: PortSentry is shutting down", "adminalert: PortSentry is shutting down"}
	const (
		starting  = "adminalert: PortSentry 1.2 is starting."
		seeSyslog = "ERROR: Check your syslog for a more detailed error message.\nERROR: PortSentry is shutting down!\n"
		missing   = "ERROR: Configuration files are missing/corrupted.\n" + seeSyslog
		mandatory = "ERROR: Your config file is corrupted/missing mandatory option!\n" + seeSyslog
	)
	corrupted := func(first string) []string {
		return []string{starting, first, "adminalert: ERROR: Your config file is corrupted/missing mandatory option! Shutting down."}
	}
	noPorts := func(first string) []string {
		return []string{starting, first, "adminalert: ERROR: could not go into PortSentry mode. Shutting down."}
	}
	without := func(key string) string {
		return regexp.MustCompile(`(?m)^`+key+`.*\n`).ReplaceAllString(debianConfig, "") + "SCAN_TRIGGER=\"0\"\n"
	}
	for name, tt := range map[string]struct {
		word, config string // no configuration: there is no such file
		want         []string
		stdout       string
		stderr       string
	}{
		"no file": {"-tcp", "", []string{
			starting, "adminalert: Cannot open config file: /etc/portsentry/portsentry.conf. Exiting",
			"adminalert: ERROR: Configuration files are missing/corrupted. Shutting down.",
		}, missing, "no such file or directory"},
		"no BLOCKED_FILE": {"-tcp", without("BLOCKED_FILE"), corrupted("InitConfig: Cannot retrieve BLOCKED_FILE option! Aborting"), mandatory, "BLOCKED_FILE"},
		"no HISTORY_FILE": {"-udp", without("HISTORY_FILE"), corrupted("InitConfig: Cannot retrieve HISTORY_FILE option! Aborting"), mandatory, "HISTORY_FILE"},
		"no IGNORE_FILE":  {"-atcp", without("IGNORE_FILE"), corrupted("InitConfig: Cannot retrieve IGNORE_FILE option! Aborting"), mandatory, "IGNORE_FILE"},
		"no TCP_PORTS":    {"-stcp", without("TCP_PORTS"), noPorts("adminalert: ERROR: Could not read TCP_PORTS option from config file"), "", "TCP_PORTS"},
		"no UDP_PORTS":    {"-sudp", without("UDP_PORTS"), noPorts("adminalert: ERROR: Could not read UDP_PORTS option from config file"), "", "UDP_PORTS"},
		"no port": {
			"-tcp", "TCP_PORTS=\"\"\n" + debianConfig + "SCAN_TRIGGER=\"0\"\n",
			noPorts("adminalert: ERROR: No TCP ports supplied in config file. Aborting"), "", "TCP_PORTS: lists no port",
		},
		"no port below the limit": {
			"-atcp", "ADVANCED_PORTS_TCP=\"0\"\n" + debianConfig + "SCAN_TRIGGER=\"0\"\n",
			noPorts("adminalert: /etc/portsentry/portsentry.conf:1: ADVANCED_PORTS_TCP: leaves no port to watch"), "", "leaves no port to watch",
		},
		"a BLOCKED_FILE in no directory": {
			"-tcp", "BLOCKED_FILE=\"/etc/portsentry/nope/x\"\n" + debianConfig + "SCAN_TRIGGER=\"0\"\n",
			corrupted("adminalert: ERROR: Cannot delete blocked file on startup: /etc/portsentry/nope/x.tcp."), mandatory, "no such file or directory",
		},
		"quotes missing": {
			"-tcp", "HISTORY_FILE=/var/lib/history\n" + debianConfig + "SCAN_TRIGGER=\"0\"\n",
			slices.Insert(corrupted("InitConfig: Cannot retrieve HISTORY_FILE option! Aborting"), 1, "adminalert: Quotes missing from HISTORY_FILE token. Option skipped"),
			mandatory, "HISTORY_FILE",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSentry1(t, "")
			if tt.config == "" {
				if err := os.Remove(filepath.Join(s.dir, config1)); err != nil {
					t.Fatal(err)
				}
			} else {
				s.write(t, config1, tt.config)
			}
			daemon := s.start(t, tt.word)
			if err := daemon.Wait(t); err == nil || err.Error() != "exit status 255" {
				t.Errorf("portsentry %s ended with %v, want exit status 255", tt.word, err)
			}
			if got := daemon.Stdout.String(); got != tt.stdout {
				t.Errorf("standard output %q, want %q", got, tt.stdout)
			}
			if got := daemon.Stderr.String(); !strings.Contains(got, "etc/portsentry/") || !strings.Contains(got, tt.stderr) {
				t.Errorf("standard error does not name the file and %q: %s", tt.stderr, got)
			}
			s.syslog.WaitLine(t, shuttingDown[1])
			if diff := cmp.Diff(slices.Concat(tt.want, shuttingDown), s.texts(t)); diff != "" {
				t.Errorf("syslog (-want +got)\n%s", diff)
			}
		})
	}
}

// A daemon without a port to watch ends. By then nobody sees its status.
func TestAllPortsInUse(t *testing.T) {
	for word, want := range map[string]string{
		"-tcp":  "adminalert: ERROR: could not bind ANY TCP sockets. Shutting down.",
		"-udp":  "adminalert: ERROR: could not bind ANY UDP sockets. Shutting down.",
		"-stcp": "adminalert: ERROR: All supplied TCP sockets are in use and will not be listened to. Shutting down.",
		"-sudp": "adminalert: ERROR: All supplied UDP sockets are in use and will not be listened to. Shutting down.",
	} {
		t.Run(word, func(t *testing.T) {
			t.Parallel()
			s := newSentry1(t, "")
			for _, port := range []uint16{7, 11, 111} {
				s.target.Listen(t, "tcp", port)
				s.target.Listen(t, "udp", port)
			}
			if err := s.start(t, word).Wait(t); err != nil {
				t.Errorf("portsentry %s ended with %v, want status 0", word, err)
			}
			s.syslog.WaitLine(t, "adminalert: PortSentry is shutting down")
			texts := s.texts(t)
			first := slices.Index(texts, want)
			if first < 0 {
				t.Fatalf("no line %q in %q", want, texts)
			}
			wantRest := []string{
				want, "adminalert: ERROR: could not go into PortSentry mode. Shutting down.",
				"securityalert: PortSentry is shutting down", "adminalert: PortSentry is shutting down",
			}
			if diff := cmp.Diff(wantRest, texts[first:]); diff != "" {
				t.Errorf("the last lines (-want +got)\n%s", diff)
			}
		})
	}
}

// What PortSentry 1.2 says and writes about probes: a table of runs, each with
// the lines that two probes of one source lead to.
func TestEventsOfPortSentry1(t *testing.T) {
	const (
		from   = "from host: 192.0.2.1/192.0.2.1 to "
		wraps  = `attackalert: Host 192.0.2.1 has been blocked via wrappers with string: "ALL: 192.0.2.1 : DENY"`
		route  = `attackalert: Host 192.0.2.1 has been blocked via dropped route using command: "true 192.0.2.1"`
		held   = "attackalert: Host: 192.0.2.1/192.0.2.1 is already blocked Ignoring"
		failed = `adminalert: KILL_ROUTE: command failed: exit status 1: "false 192.0.2.1"`
	)
	external := func(mode string) string {
		return `attackalert: External command run for host: 192.0.2.1 using command: "true 192.0.2.1 11 ` + mode + `"`
	}
	const (
		all       = block + hostsDeny + trueRoute + `KILL_RUN_CMD="true $TARGET$ $PORT$ $MODE$"` + "\n"
		hopeless  = block + `KILL_ROUTE="false $TARGET$"` + "\n"
		first     = `KILL_RUN_CMD_FIRST="1"` + "\n"
		connected = "attackalert: Connect " + from
		syn       = "attackalert: TCP SYN/Normal scan " + from + "TCP port: 11"
		udp       = "attackalert: UDP scan " + from + "UDP port: 11"
		optioned  = "attackalert: Packet " + from + "TCP port: 11 has IP options set (detection avoidance technique)."
		noTCP     = "attackalert: Ignoring TCP response per configuration file setting."
		noUDP     = "attackalert: Ignoring UDP response per configuration file setting."
	)
	for name, tt := range map[string]struct {
		word   string
		config string
		probe  []string // how each is sent: tcp, udp or an option of nmap
		want   []string
		blocks bool // the source is in the history and in the list
	}{
		"-tcp, reported":   {"-tcp", "", []string{"tcp", "tcp"}, []string{connected + "TCP port: 11", noTCP, connected + "TCP port: 11", "attackalert: Host: 192.0.2.1 is already blocked. Ignoring"}, true},
		"-udp, reported":   {"-udp", "", []string{"udp", "udp"}, []string{connected + "UDP port: 11", noUDP, connected + "UDP port: 11", "attackalert: Host: 192.0.2.1 is already blocked. Ignoring"}, true},
		"-stcp, reported":  {"-stcp", "", []string{"-sS", "-sF"}, []string{syn, noTCP, "attackalert: TCP FIN scan " + from + "TCP port: 11", held}, true},
		"-atcp, reported":  {"-atcp", "", []string{"-sN", "-sX"}, []string{"attackalert:  TCP NULL scan " + from + "TCP port: 11", noTCP, "attackalert: TCP XMAS scan " + from + "TCP port: 11", held}, true},
		"-sudp, reported":  {"-sudp", "", []string{"-sU", "udp"}, []string{udp, noUDP, udp, held}, true},
		"-audp, reported":  {"-audp", "", []string{"udp", "udp"}, []string{udp, noUDP, udp, held}, true},
		"-tcp, blocked":    {"-tcp", all, []string{"tcp", "tcp"}, []string{connected + "TCP port: 11", wraps, route, external("tcp"), connected + "TCP port: 11", "attackalert: Host: 192.0.2.1 is already blocked. Ignoring"}, true},
		"-udp, blocked":    {"-udp", all, []string{"udp"}, []string{connected + "UDP port: 11", wraps, route, external("udp")}, true},
		"-stcp, blocked":   {"-stcp", all, []string{"tcp", "tcp"}, []string{syn, wraps, route, external("stcp"), syn, held}, true},
		"-atcp, blocked":   {"-atcp", all + first, []string{"tcp", "tcp"}, []string{syn, external("atcp"), wraps, route, syn, held}, true},
		"-sudp, blocked":   {"-sudp", all, []string{"udp"}, []string{udp, wraps, route, external("sudp")}, true},
		"-audp, blocked":   {"-audp", all, []string{"udp"}, []string{udp, wraps, route, external("audp")}, true},
		"-tcp, failed":     {"-tcp", hopeless, []string{"tcp"}, []string{connected + "TCP port: 11", failed, "attackalert: ERROR: Could not block host 192.0.2.1 !!"}, false},
		"-udp, failed":     {"-udp", hopeless, []string{"udp"}, []string{connected + "UDP port: 11", failed, "attackalert: ERROR: Could not block host 192.0.2.1 !!"}, false},
		"-stcp, failed":    {"-stcp", hopeless, []string{"tcp", "tcp"}, []string{syn, failed, "attackalert: ERROR: Could not block host 192.0.2.1/192.0.2.1 !!", syn, failed, "attackalert: ERROR: Could not block host 192.0.2.1/192.0.2.1 !!"}, false},
		"-atcp, failed":    {"-atcp", hopeless, []string{"tcp"}, []string{syn, failed, "attackalert: ERROR: Could not block host 192.0.2.1/192.0.2.1!!"}, false},
		"-sudp, failed":    {"-sudp", hopeless, []string{"udp"}, []string{udp, failed, "attackalert: ERROR: Could not block host 192.0.2.1/192.0.2.1!!"}, false},
		"-audp, failed":    {"-audp", hopeless, []string{"udp"}, []string{udp, failed, "attackalert: ERROR: Could not block host 192.0.2.1/192.0.2.1!!"}, false},
		"IP options":       {"-stcp", "", []string{"-sS --ip-options R"}, []string{syn, optioned, noTCP}, true},
		"no target":        {"-stcp", block + `KILL_ROUTE="true"` + "\n" + `KILL_HOSTS_DENY="ALL: ALL"` + "\n", []string{"tcp"}, []string{syn, "adminalert: No target variable specified in KILL_HOSTS_DENY option. Skipping.", "adminalert: No target variable specified in KILL_ROUTE option. Skipping.", "attackalert: ERROR: Could not block host 192.0.2.1/192.0.2.1 !!"}, false},
		"nothing to do":    {"-stcp", block, []string{"tcp"}, []string{"adminalert: bans are not in force: output classic: nothing is configured to ban with", syn, "attackalert: ERROR: Could not block host 192.0.2.1/192.0.2.1 !!"}, false},
		"external command": {"-stcp", `BLOCK_TCP="2"` + "\n" + `KILL_RUN_CMD="true $TARGET$ $PORT$ $MODE$"` + "\n", []string{"tcp"}, []string{syn, external("stcp")}, true},
		"trigger":          {"-stcp", `SCAN_TRIGGER="3"` + "\n", []string{"tcp", "tcp", "tcp"}, []string{syn, noTCP}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSentry1(t, tt.config)
			s.begin(t, tt.word)
			for _, how := range tt.probe {
				if how[0] == '-' {
					s.nmap(t, "11", strings.Fields(how)...)
				} else {
					s.probe(t, how, s.target.IPv4, 11)
				}
			}
			nettest.WaitFor(t, "the lines", func() bool {
				texts := s.texts(t)
				return len(texts)-slices.Index(texts, active1) > len(tt.want)
			})
			if diff := cmp.Diff(tt.want, s.end(t)); diff != "" {
				t.Errorf("lines (-want +got)\n%s", diff)
			}
			records := 0
			if tt.blocks {
				records = 1
			}
			proto := "TCP"
			if strings.HasSuffix(tt.word, "udp") {
				proto = "UDP"
			}
			record := regexp.MustCompile(`^\d{10} - \d\d/\d\d/\d{4} \d\d:\d\d:\d\d Host: 192\.0\.2\.1/192\.0\.2\.1 Port: 11 ` + proto + ` Blocked\n$`)
			for _, file := range []string{history1, blocked1 + tt.word[1:]} {
				if got := s.read(t, file); strings.Count(got, "\n") != records || tt.blocks && !record.MatchString(got) {
					t.Errorf("%s holds %q, want %d records", file, got, records)
				}
			}
		})
	}
}

// Debian starts one daemon for each protocol, with the same configuration.
func TestDebianRunsTwoOfPortSentry1(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	stock := readFile(t, "../../parsers/conf/testdata/convert/v1-debian.conf")
	s.write(t, config1, strings.ReplaceAll(stock, "/var/lib/portsentry/", "/etc/portsentry/"))
	var daemons []background
	for _, word := range []string{"-tcp", "-udp"} {
		s.begin(t, word)
		daemons = append(daemons, s.daemon)
	}
	for _, network := range []string{"tcp", "udp"} {
		s.probe(t, network, s.target.IPv4, 1)
	}
	s.syslog.WaitLine(t, "]: attackalert: Connect from host: 192.0.2.1/192.0.2.1 to TCP port: 1")
	s.syslog.WaitLine(t, "]: attackalert: Connect from host: 192.0.2.1/192.0.2.1 to UDP port: 1")
	for _, daemon := range daemons {
		daemon.stop(t, syscall.SIGTERM, exitOK)
	}
	for file, want := range map[string]struct {
		records int
		mode    os.FileMode
	}{history1: {2, 0o600}, blocked1 + "tcp": {1, 0o644}, blocked1 + "udp": {1, 0o644}} {
		info, err := os.Stat(filepath.Join(s.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(s.read(t, file), "\n"); got != want.records || info.Mode() != want.mode {
			t.Errorf("%s has %d records and mode %v, want %d and %v", file, got, info.Mode(), want.records, want.mode)
		}
	}
}

// The list of blocked sources is emptied at the start, and whoever takes a line
// out of it has its source forgotten at once.
func TestBlockedListOfPortSentry1(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	s.write(t, blocked1+"stcp", listOfPortSentry1)
	s.write(t, history1, listOfPortSentry1)
	s.begin(t, "-stcp")
	if got := s.read(t, blocked1+"stcp"); got != "" {
		t.Errorf("the list still holds %q", got)
	}
	s.probe(t, "tcp", s.target.IPv4, 11)
	nettest.WaitFor(t, "a record", func() bool { return s.read(t, blocked1+"stcp") != "" })
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "is already blocked")
	s.write(t, blocked1+"stcp", "")
	nettest.WaitFor(t, "a second report", func() bool {
		s.probe(t, "tcp", s.target.IPv4, 11)
		return countLines(s.syslog, "Ignoring TCP response") == 2
	})
	s.end(t)
	if got := s.read(t, history1); !strings.HasPrefix(got, listOfPortSentry1) || strings.Count(got, "\n") != 3 {
		t.Errorf("the history holds %q, want a record more for each report", got)
	}
}

// A source whose record cannot be written is blocked all the same, and gets its
// record as soon as it can be.
func TestUnrecordedSourceOfPortSentry1(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	s.begin(t, "-stcp")
	list := filepath.Join(s.dir, blocked1+"stcp")
	if err := errors.Join(os.Remove(list), os.Mkdir(list, 0o755)); err != nil {
		t.Fatal(err)
	}
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "adminalert: banned sources are still not written down; this is tried every second")
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "is already blocked")
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	nettest.WaitFor(t, "the record", func() bool {
		_, err := os.Stat(list)
		return err == nil && s.read(t, blocked1+"stcp") != ""
	})
	s.end(t)
	if got := s.read(t, blocked1+"stcp"); strings.Count(got, "Host: 192.0.2.1/192.0.2.1 Port: 11 TCP Blocked\n") != 1 {
		t.Errorf("the list holds %q, want one record", got)
	}
	if n := countLines(s.syslog, "still not written down"); n != 1 {
		t.Errorf("the failure is told of %d times, want once", n)
	}
}

// Whoever has a banner for one mode of PortSentry starts the others in silence.
func TestBannerOfPortSentry1IsNoCauseForMail(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "PORT_BANNER=\"go away\"\n")
	parent := s.start(t, "-stcp")
	if err := parent.Wait(t); err != nil {
		t.Fatal(err)
	}
	if got := parent.Stdout.String() + parent.Stderr.String(); got != "" {
		t.Errorf("it prints %q, want nothing", got)
	}
	waitLines(t, s.syslog, 1, active1)
	lines := s.syslogLines(t)
	s.daemon = daemonOf(t, lines[len(lines)-1])
	s.end(t)
}

// An ignored source leaves no trace. The file is read again whenever it changes.
func TestIgnoreFileOfPortSentry1(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	s.write(t, ignore1, "# from Debian's init script\n127.0.0.1/32\n192.0.2.7/24 the whole network\n")
	s.begin(t, "-tcp")
	// ignored reports whether the scanner is, over IPv4; over IPv6 it never is,
	// and the line about that shows that the other one does not come any more.
	others := 0
	ignored := func() bool {
		before := countLines(s.syslog, "from host: 192.0.2.1/")
		s.probe(t, "tcp", s.target.IPv4, 11)
		s.probe(t, "tcp", s.target.IPv6, 11)
		others++
		waitLines(t, s.syslog, others, "from host: 2001:db8::1/")
		return countLines(s.syslog, "from host: 192.0.2.1/") == before
	}
	if !ignored() {
		t.Error("a source is reported that the file ignores")
	}
	s.write(t, ignore1, "127.0.0.1/32\n")
	nettest.WaitFor(t, "a report", func() bool { return !ignored() })
	s.write(t, ignore1, "192.0.2.1 me\n")
	nettest.WaitFor(t, "no report", ignored)
	s.end(t)
}

func TestMissingIgnoreFileOfPortSentry1(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	if err := os.Remove(filepath.Join(s.dir, ignore1)); err != nil {
		t.Fatal(err)
	}
	s.begin(t, "-stcp")
	s.syslog.WaitLine(t, "attackalert: ERROR: cannot open ignore file. Blocking host anyway.")
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "TCP SYN/Normal scan")
	s.end(t)
}

func TestIgnoreFileWithABadLine(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	s.write(t, ignore1, "192.0.2.9/33\n192.0.2.1\n")
	s.begin(t, "-tcp")
	s.syslog.WaitLine(t, "]: adminalert: Invalid netmask in config file: 192.0.2.9/33  Ignoring entry.")
	s.probe(t, "tcp", s.target.IPv4, 11) // is ignored
	s.probe(t, "tcp", s.target.IPv6, 11)
	s.syslog.WaitLine(t, "from host: 2001:db8::1/")
	for _, text := range s.end(t) {
		if strings.Contains(text, "192.0.2.1/") {
			t.Errorf("it says %q about a source that the file ignores", text)
		}
	}
}

func TestSignalsOfPortSentry1(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	s.begin(t, "-stcp")
	for _, ignored := range []syscall.Signal{syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGALRM} {
		if err := s.daemon.Signal(ignored); err != nil {
			t.Fatal(err)
		}
	}
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "Ignoring TCP response")
	before := s.texts(t)
	s.daemon.stop(t, syscall.SIGINT, exitOK)
	if diff := cmp.Diff(before, s.texts(t)); diff != "" {
		t.Errorf("SIGINT makes it talk (-before +after)\n%s", diff)
	}
}

// A port that a service takes later is left alone, without a word.
func TestSmartVerifyIsSilent(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	s.begin(t, "-stcp")
	service := s.target.Listen(t, "tcp", 11)
	s.nmap(t, "11", "-sS")
	service.Close()
	s.probe(t, "tcp", s.target.IPv4, 111)
	s.syslog.WaitLine(t, "to TCP port: 111")
	for _, text := range s.end(t) {
		if strings.Contains(text, "port: 11 ") || strings.HasSuffix(text, "port: 11") || strings.Contains(text, "service") {
			t.Errorf("it says %q", text)
		}
	}
}

// The modes that sniff watch what the start said: no port that was in use then,
// none that is excluded and none above the limit.
func TestPortsOfPortSentry1(t *testing.T) {
	for word, want := range map[string][]string{
		"-stcp": {"11"},
		"-atcp": {"1", "11", "19"},
	} {
		t.Run(word, func(t *testing.T) {
			t.Parallel()
			s := newSentry1(t, "")
			services := []io.Closer{s.target.Listen(t, "tcp", 15), s.target.Listen(t, "tcp", 111)}
			s.begin(t, word)
			for _, service := range services {
				service.Close()
			}
			for _, port := range []uint16{1, 13, 15, 17, 20, 111, 11, 19} {
				s.probe(t, "tcp", s.target.IPv4, port)
			}
			waitLines(t, s.syslog, len(want), "TCP SYN/Normal scan")
			var got []string
			for _, text := range s.end(t) {
				if _, port, found := strings.Cut(text, "192.0.2.1 to TCP port: "); found {
					got = append(got, port)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("ports that are watched (-want +got)\n%s", diff)
			}
		})
	}
}

func TestPortSentry1WithoutATrigger(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	s.write(t, config1, debianConfig)
	s.begin(t, "-stcp")
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "Ignoring TCP response")
	s.end(t)
	want := []string{
		"adminalert: PortSentry 1.2 is starting.",
		"adminalert: ERROR: Could not read SCAN_TRIGGER option from config file. Disabling SCAN DETECTION TRIGGER",
		"adminalert: Going into stealth listen mode on TCP port: 111",
	}
	if diff := cmp.Diff(want, s.texts(t)[:len(want)]); diff != "" {
		t.Errorf("the first lines (-want +got)\n%s", diff)
	}
}

// The local network's broadcasts reach the modes that sniff for datagrams.
func TestBroadcastsReachPortSentry1(t *testing.T) {
	t.Parallel()
	s := newSentry1(t, "")
	s.begin(t, "-sudp")
	s.scanner.Run(t, "socat", "-u", "EXEC:echo who is there", "UDP4-DATAGRAM:192.0.2.255:11,broadcast")
	s.syslog.WaitLine(t, "attackalert: UDP scan from host: 192.0.2.1/192.0.2.1 to UDP port: 11")
	s.end(t)
}

// Logwatch's script for PortSentry knows what an advanced mode says at its start.
func TestLogwatchReadsTheStart(t *testing.T) {
	const dir = "/usr/share/logwatch"
	logwatch := exec.CommandContext(t.Context(), "perl", "-I", dir+"/lib", dir+"/scripts/services/portsentry")
	logwatch.Env = append(os.Environ(), "LOGWATCH_NUMERIC=1", "LOGWATCH_DETAIL_LEVEL=10")
	var lines strings.Builder
	_, start, _ := strings.Cut(readFile(t, "testdata/golden/portsentry1-start"), "== -atcp\n")
	start, _, _ = strings.Cut(start, "== ")
	for line := range strings.Lines(start) {
		lines.WriteString("Nov 22 07:44:33 host portsentry[1234]: " + line)
	}
	logwatch.Stdin = strings.NewReader(lines.String())
	report, err := logwatch.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: apt-get install logwatch\n%s", logwatch, err, report)
	}
	for _, want := range []string{"TCP: ports: 13 15 17\n", "Advanced: ports: 13 17\n"} {
		if !strings.Contains(string(report), want) {
			t.Errorf("Logwatch does not report %q:\n%s", want, report)
		}
	}
	if strings.Contains(string(report), "now active") {
		t.Errorf("Logwatch does not know the line about the start:\n%s", report)
	}
}
