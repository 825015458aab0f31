package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/portsnare/portsnare/internal/logfile"
	"github.com/portsnare/portsnare/outputs/portsentrylog"
	"github.com/portsnare/portsnare/parsers/logline"
)

// A voice says PortSentry's lines about the program itself, where its options
// sent them. It is safe for concurrent use.
type voice struct {
	out, fault     *printer // nil: nothing is printed
	verbose, debug bool
	flat           bool   // all lines have the same severity
	prefix         string // of lines that PortSentry does not have

	mu      sync.Mutex
	syslog  *portsentrylog.Syslog // nil: nothing is sent there
	unheard int                   // lines in a row that syslog did not take
}

// A syslog daemon that reads nothing costs a second for a line. So that a start
// with a line for each port, and the end, take their time all the same, only this
// many lines in a row wait for it; the next ones do for a moment.
const (
	maxUnheard = 2
	moment     = time.Millisecond
)

// say says one line. A line that nobody takes is lost: there is no other way left
// to tell of it.
func (v *voice) say(severity logline.Severity, format string, args ...any) {
	if severity == logline.Verbose && !v.verbose || severity == logline.Debug && !v.debug {
		return
	}
	if v.flat {
		severity = logline.Normal
	}
	line := logline.AppendLine(nil, severity, fmt.Sprintf(format, args...))
	to := v.out
	if severity == logline.Error {
		to = v.fault
	}
	if to != nil {
		_ = to.Append(line[1:])
	}
	v.send(severity, strings.TrimSuffix(string(line[1:]), "\n"))
}

// send sends one line to syslog.
func (v *voice) send(severity logline.Severity, text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.syslog == nil {
		return
	}
	ctx := context.Background()
	if v.unheard >= maxUnheard {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, moment)
		defer cancel()
	}
	if err := v.syslog.Print(ctx, severity, text); err != nil {
		v.unheard++
	} else {
		v.unheard = 0
	}
}

// close says what is left to say.
func (v *voice) close() {
	for _, p := range []*printer{v.out, v.fault} {
		if p != nil {
			_ = p.Close() // nobody is left to tell
		}
	}
	if v.syslog != nil {
		_ = v.syslog.Close()
	}
}

// logger returns a logger that speaks through v: errors and warnings at the
// level of errors, what concerns the life of the daemon to those who want more
// lines.
func (v *voice) logger() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(discard{})
	log.SetFormatter(discard{})
	log.SetLevel(logrus.DebugLevel)
	log.AddHook(v)
	return logrus.NewEntry(log)
}

// Levels makes a voice a [logrus.Hook].
func (*voice) Levels() []logrus.Level { return logrus.AllLevels }

// Fire says an entry in one line: its message, its error, and its fields.
func (v *voice) Fire(entry *logrus.Entry) error {
	severity := logline.Error
	switch entry.Level {
	case logrus.InfoLevel:
		severity = logline.Verbose
	case logrus.DebugLevel, logrus.TraceLevel:
		severity = logline.Debug
	}
	text := entry.Message
	if err, ok := entry.Data[logrus.ErrorKey]; ok {
		text += fmt.Sprintf(": %v", err)
	}
	var names []string
	for name := range entry.Data {
		if name != logrus.ErrorKey {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		text += fmt.Sprintf(" %s=%v", name, entry.Data[name])
	}
	if severity == logline.Debug {
		text = "debug: " + text
	}
	v.say(severity, "%s%s", v.prefix, text)
	return nil
}

// discard is where a logger writes that speaks through a hook alone.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Format makes a discard a [logrus.Formatter], to spare the work of another.
func (discard) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

// A printer lets several goroutines append to one stream.
type printer struct {
	mu     sync.Mutex
	stream *logfile.Stream
}

func newPrinter(w io.Writer) *printer { return &printer{stream: logfile.NewStream(w)} }

// Append appends records as the stream does.
func (p *printer) Append(records []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stream.Append(records)
}

// Close writes what is left.
func (p *printer) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stream.Close()
}

// isRoot reports whether we have the rights that PortSentry insists on.
func isRoot() bool { return os.Geteuid() == 0 }
