package capture

import (
	"io"
	"time"

	"github.com/sirupsen/logrus"
)

// silentLog returns the logger of callers that want none.
func silentLog() *logrus.Entry {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	return logrus.NewEntry(logger)
}

// warningInterval is the least time between two warnings of one kind.
const warningInterval = time.Minute

// A logLimit lets through one message per warningInterval. It is not safe for
// concurrent use.
type logLimit struct{ next time.Time }

func (l *logLimit) allow(now time.Time) bool {
	if now.Before(l.next) {
		return false
	}
	l.next = now.Add(warningInterval)
	return true
}
