package outputs

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// What a module may log.
const (
	maxLogLine   = 8192 // bytes; what is longer is cut
	maxLogKey    = 64
	logRate      = 100  // lines a second
	logBurst     = 1000 // lines at once
	maxLastWords = 300  // bytes of what is told of a process that ended
)

// A moduleLog passes on to the daemon's log what a module writes to its standard
// error: JSON lines as go-hclog and outputapi make them, and any other text. It
// drops and counts what comes too fast.
type moduleLog struct {
	log     *logrus.Entry
	dropped atomic.Uint64 // lines

	budget   float64   // lines that may be logged at once
	filled   time.Time // when budget was reckoned
	untold   uint64    // of dropped, what the log does not say yet
	crashing bool      // a crash of Go's is being told

	mu    sync.Mutex
	words string // guarded by mu; of a crash the first line of text, else the last
}

func newModuleLog(log *logrus.Entry) *moduleLog {
	return &moduleLog{log: log, budget: logBurst, filled: time.Now()}
}

// read logs what r holds, until its end or an error.
func (l *moduleLog) read(r io.Reader) {
	lines := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			l.line(line)
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = lines.ReadSlice('\n')
		}
		if err != nil {
			break
		}
	}
	l.tellDropped()
}

// line logs one line, if it is not one too many.
func (l *moduleLog) line(line []byte) {
	if !l.afford() {
		l.dropped.Add(1)
		l.untold++
		return
	}
	l.tellDropped()
	if !l.structured(line) {
		l.text(outputv1.Text(string(line), maxLogLine))
	}
}

// afford reports whether a line may be logged, and counts it.
func (l *moduleLog) afford() bool {
	now := time.Now()
	l.budget = min(logBurst, l.budget+now.Sub(l.filled).Seconds()*logRate)
	l.filled = now
	if l.budget < 1 {
		return false
	}
	l.budget--
	return true
}

func (l *moduleLog) tellDropped() {
	if l.untold > 0 {
		l.log.WithField("lines", l.untold).Warn("output module logs too much, lines dropped")
		l.untold = 0
	}
}

// structured logs a line in JSON, and reports whether it is one. Nothing that it
// says can replace what the log says of the module.
func (l *moduleLog) structured(line []byte) bool {
	var facts map[string]json.RawMessage
	if json.Unmarshal(line, &facts) != nil || facts["@message"] == nil {
		return false
	}
	fields := logrus.Fields{}
	for key, value := range facts {
		key = outputv1.Text(key, maxLogKey)
		if _, ours := l.log.Data[key]; !ours && !strings.HasPrefix(key, "@") {
			fields[key] = plain(value)
		}
	}
	l.log.WithFields(fields).Log(levelOf(plain(facts["@level"])), plain(facts["@message"]))
	return true
}

// plain returns the text of a JSON string, or another value as it is written.
func plain(value json.RawMessage) string {
	var s string
	if json.Unmarshal(value, &s) != nil {
		s = string(value)
	}
	return outputv1.Text(s, maxLogLine)
}

// levelOf never returns a level that would end the daemon.
func levelOf(s string) logrus.Level {
	switch level, err := logrus.ParseLevel(s); {
	case err != nil:
		return logrus.InfoLevel
	case level < logrus.ErrorLevel:
		return logrus.ErrorLevel
	default:
		return level
	}
}

// text logs a line that is no JSON. Such lines are what a process writes that
// crashes, and worth keeping for whoever asks why it did.
func (l *moduleLog) text(line string) {
	if line == "" {
		return
	}
	begins := strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")
	if begins || !l.crashing {
		l.mu.Lock()
		l.words = outputv1.Text(line, maxLastWords)
		l.mu.Unlock()
	}
	l.crashing = l.crashing || begins
	if l.crashing {
		l.log.Error(line)
	} else {
		l.log.Info(line)
	}
}

func (l *moduleLog) lastWords() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.words
}
